"""Pure: what may be said about readiness, from the pool and the supervisor. Live is not ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.keeper import Facts, Standing
from gateway.pool import Pool
from gateway.workers import State, Worker

# Its process runs and has not said Hello yet.
_STARTING = "starting"
# Every state of a worker's place that `state_of` can tell.
STATES = tuple(
    dict.fromkeys(
        (
            _STARTING,
            *(state.value for state in State if state is not State.GONE),
            *(standing.value for standing in Standing if standing is not Standing.RUNNING),
        )
    )
)


def readiness(pool: Pool, facts: Mapping[str, Facts]) -> tuple[bool, dict[str, Any]]:
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


def state_of(pool: Pool, name: str, fact: Facts) -> str:
    """How a worker is: what it says of itself, or else what is done about its place; one of STATES."""
    if worker := pool.workers.get(name):
        return worker.state.value
    return _STARTING if fact.standing is Standing.RUNNING else fact.standing.value


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
        entry["reason"] = next(iter(problems.values()), None) or _reason(pool, workers)
    return entry


def _reason(pool: Pool, workers: dict[str, dict[str, Any]]) -> str:
    """Why no worker can serve, in words: how they are, and of what those died that are not there."""
    if not workers:
        return "no replica in step: there are no workers"
    hows = sorted({_how(pool, pool.workers.get(name), entry) for name, entry in workers.items()})
    return f"no replica in step: workers are {', '.join(hows)}"


def _how(pool: Pool, worker: Worker | None, entry: dict[str, Any]) -> str:
    if worker is None:
        return f"{entry['state']} ({entry['last_error']})" if entry.get("last_error") else str(entry["state"])
    if worker.state is not State.READY:
        return worker.state.value
    return "silent" if entry["suspect"] else "behind the wanted state" if not entry["in_step"] else "ready"


def _worker(pool: Pool, name: str, fact: Facts) -> dict[str, Any]:
    entry: dict[str, Any] = {"state": state_of(pool, name, fact), "restarts": fact.restarts.total()}
    if worker := pool.workers.get(name):
        entry |= {
            "in_step": worker.version == pool.wanted.version,
            "suspect": worker.missed >= pool.limits.suspect_after,
            "jobs": len(worker.jobs),
        }
    if fact.last_error:
        entry["last_error"] = fact.last_error
    return entry
