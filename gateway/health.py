"""Pure: what may be said about readiness, from the pool and the supervisor. Live is not ready."""

from __future__ import annotations

from typing import Any

from gateway.keeper import Facts, Standing
from gateway.pool import Pool
from gateway.workers import State


def readiness(pool: Pool, facts: dict[str, Facts]) -> tuple[bool, dict[str, Any]]:
    """Whether anything can be served, and the story: per model its replicas in step, and per worker how it is.

    One model that cannot be loaded does not take the others out of a balancer: then the status is "degraded".
    """
    workers = {name: _worker(pool, name, fact) for name, fact in facts.items()}
    models = {model.id: _model(pool, model.id, workers) for model in pool.wanted.models}
    able = [model["ready"] for model in models.values()]
    ready = not pool.draining and any(able)
    return ready, {"status": _status(pool, able), "models": models, "workers": workers}


def ready_replicas(pool: Pool, model: str) -> int:
    """Replicas of this model that are ready and in step."""
    return sum(
        worker.state is State.READY
        and worker.version == pool.wanted.version
        and worker.missed < pool.limits.suspect_after
        and worker.card(model) is not None
        for worker in pool.workers.values()
    )


def _status(pool: Pool, able: list[bool]) -> str:
    if pool.draining:
        return "draining"
    if all(able):
        return "ready"
    return "degraded" if any(able) else "not_ready"


def _model(pool: Pool, model: str, workers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ready = ready_replicas(pool, model)
    entry: dict[str, Any] = {"ready": ready > 0, "replicas_ready": ready, "replicas": len(workers)}
    problems = {
        name: outcome.problem.message
        for name, worker in pool.workers.items()
        if (outcome := worker.outcomes.get(model)) and outcome.problem
    }
    if problems:
        entry["problems"] = problems
    if not ready:
        entry["reason"] = next(iter(problems.values()), None) or _reason(workers)
    return entry


def _reason(workers: dict[str, dict[str, Any]]) -> str:
    states = sorted({str(worker["state"]) for worker in workers.values()})
    return f"no replica in step: workers are {', '.join(states)}"


def _worker(pool: Pool, name: str, fact: Facts) -> dict[str, Any]:
    worker = pool.workers.get(name)
    if worker is not None:
        state = worker.state.value
    elif fact.standing is Standing.RUNNING:
        state = "starting"
    else:
        state = fact.standing.value
    entry: dict[str, Any] = {"state": state, "restarts": fact.restarts}
    if worker is not None:
        entry |= {
            "in_step": worker.version == pool.wanted.version,
            "suspect": worker.missed >= pool.limits.suspect_after,
            "jobs": len(worker.jobs),
        }
    if fact.last_error:
        entry["last_error"] = fact.last_error
    return entry
