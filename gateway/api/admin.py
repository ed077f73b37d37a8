"""Administration of workers: who they are, one drained or restarted, more or fewer of them."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from gateway.api import access, body
from gateway.api.schema import failures, json_body
from gateway.api.state import State
from gateway.keeper import Facts, Standing
from gateway.keys import Role
from gateway.pool import Pool
from gateway.workers import Worker
from shared.errors import UnknownWorker

router = access.router(Role.ADMIN, tags=["administration"])

_MAX_BODY = 64 << 10


class Scale(BaseModel):
    """How many replicas there shall be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: Annotated[int, Field(ge=1, le=64)]


@router.get("/v1/admin/workers", responses=failures())
async def workers(request: Request) -> Response:
    """Every worker, with what it holds and what it does."""
    return _list(_state(request))


@router.post("/v1/admin/workers/{name}/drain", responses=failures(404))
async def drain(request: Request, name: str) -> Response:
    """Take a worker out of service: it finishes what it has, and stays away until it is restarted."""
    return _want(request, name, Standing.DRAINED)


@router.post("/v1/admin/workers/{name}/restart", responses=failures(404))
async def restart(request: Request, name: str) -> Response:
    """Start a worker anew, once it has finished what it has; also one that is drained or quarantined."""
    return _want(request, name, Standing.RUNNING)


@router.post("/v1/admin/scale", responses=failures(408, 413, 415), openapi_extra=json_body(Scale, {"replicas": 4}))
async def scale(request: Request) -> Response:
    """Have so many replicas: those that are too many finish what they have. Answers with all workers as they are."""
    said = await body.parse(request, _MAX_BODY)
    try:
        wanted = Scale.model_validate(said, strict=True)
    except ValidationError as error:
        raise body.bad_input(error, {}) from error
    state = _state(request)
    state.serving.scale(wanted.replicas, state.settings.drain_seconds)
    return _list(state)


def _state(request: Request) -> State:
    state: State = request.app.state.replicast
    return state


def _want(request: Request, name: str, standing: Standing) -> Response:
    state = _state(request)
    try:
        state.serving.want_worker(name, standing, state.settings.drain_seconds)
    except KeyError as error:
        raise UnknownWorker(f"There is no worker '{name[:64]}'.", param="name") from error
    return _json(_row(state, name, state.serving.supervisor.facts[name]))


def _list(state: State) -> Response:
    rows = [_row(state, name, facts) for name, facts in state.serving.supervisor.facts.items()]
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return _json({"object": "list", "data": rows, **ends, "has_more": False})


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _row(state: State, name: str, facts: Facts) -> dict[str, Any]:
    pool = state.serving.pool
    worker = pool.workers.get(name)
    row: dict[str, Any] = {
        "id": name,
        "name": name,
        "object": "worker",
        "kind": "local",
        "state": _condition(worker, facts),
        "in_step": worker is not None and worker.version == pool.wanted.version,
        "pid": facts.pid or None,
        "devices": list(facts.slot.devices),
        "device_kind": facts.slot.kind,
        "restarts": facts.restarts.total(),
        "last_error": facts.last_error or None,
        "started_at": int(facts.started_at) or None,
        "models": [],
        "jobs": [],
        "memory": {"used_bytes": 0, "total_bytes": 0},
        "step_age_seconds": None,
    }
    return row | _session(pool, worker) if worker else row


def _session(pool: Pool, worker: Worker) -> dict[str, Any]:
    """What a worker that has introduced itself adds."""
    models = [
        {
            "id": model,
            "state": "failed" if outcome.problem else worker.device.kind,
            "memory_bytes": outcome.memory_bytes,
            "lora_epoch": outcome.epoch,
            "problem": outcome.problem.message if outcome.problem else None,
        }
        for model, outcome in worker.outcomes.items()
    ]
    jobs = [
        {"id": job.id, "model": job.model, "request": job.request_id, "attempt": job.attempt, "started": job.started}
        for job in worker.jobs.values()
    ]
    return {
        "models": models,
        "jobs": jobs,
        "memory": {"used_bytes": worker.memory_bytes, "total_bytes": worker.device.memory_bytes},
        "step_age_seconds": worker.still_ticks * pool.limits.ping_seconds if worker.jobs else None,
    }


def _condition(worker: Worker | None, facts: Facts) -> str:
    """The worker's state, or why there is none."""
    if worker is not None:
        return worker.state.value
    return "starting" if facts.standing is Standing.RUNNING else facts.standing.value
