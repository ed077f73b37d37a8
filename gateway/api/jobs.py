"""GET /v1/jobs: the pictures that are being made or wait, with their place in the queue and when they may be there.

A job is one picture of a request. It is here from its acceptance to its answer, and is known by the request's own id,
which is in the answer's `x-request-id`, and which a client may choose by sending that header.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from gateway.admission import eta_seconds
from gateway.api import access
from gateway.api.schema import failures
from gateway.api.state import State
from gateway.auth import Caller
from gateway.jobs.job import Job, JobState
from gateway.keys import Role
from shared.errors import UnknownJob

router = access.router(Role.INFERENCE, tags=["jobs"])

_KINDS = {"generate": "generation", "edit": "edit", "inpaint": "edit", "variation": "variation"}
_REQUEST = {
    "name": "request",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Only the jobs of the request with this `x-request-id`",
}


@router.get("/v1/jobs", responses=failures(), openapi_extra={"parameters": [_REQUEST]})
async def jobs(request: Request) -> Response:
    """The caller's jobs that are not over, oldest first; for an administrator everybody's."""
    state: State = request.app.state.replicast
    wanted = request.query_params.get("request")
    rows = [_row(state, job) for job in _visible(request, state) if wanted in (None, job.request_id)]
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return Response(orjson.dumps({"object": "list", "data": rows, **ends, "has_more": False}), media_type=_JSON)


@router.get("/v1/jobs/{job}", responses=failures(404))
async def job(request: Request, job: str) -> Response:
    """One job that is not over: its place in the queue, or how far it is."""
    state: State = request.app.state.replicast
    for found in _visible(request, state):
        if found.id == job:
            return Response(orjson.dumps(_row(state, found)), media_type=_JSON)
    raise UnknownJob("There is no such job, or it is over.", param="job")


_JSON = "application/json"


def _visible(request: Request, state: State) -> list[Job]:
    caller: Caller = request.scope["state"]["caller"]
    return [
        job
        for job in state.serving.pool.jobs.values()
        if caller.role is Role.ADMIN or (job.owner == caller.account and caller.key_id is not None)
    ]


def _row(state: State, job: Job) -> dict[str, Any]:
    pool, now, clock = state.serving.pool, time.monotonic(), time.time()
    queued = job.state is JobState.QUEUED
    return {
        "id": job.id,
        "object": "job",
        "kind": _KINDS[job.task],
        "status": job.state.value,
        "request": job.request_id,
        "model": job.model,
        "priority": job.priority,
        "attempts": job.attempt,
        "created_at": int(clock - (now - job.submitted)),
        "started_at": int(clock - (now - job.began)) if job.started else None,
        "expires_at": int(clock + job.deadline - now),
        "position": pool.ledger.backlog.ahead_of(job)[0] + 1 if queued else None,
        "eta_seconds": round(eta_seconds(job, pool.ledger, pool.workers, now), 2),
        "step": job.step,
        "total_steps": job.total or job.parameters.steps * len(job.seeds),
        "progress": round(job.step / job.total, 3) if job.total else 0.0,
        "replica": job.worker or None,
        "error": None,
        "result": None,
    }
