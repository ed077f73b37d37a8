"""Health and figures: live is not ready, and neither ever waits for a device."""

from __future__ import annotations

import orjson
from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from gateway.api import access
from gateway.api.schema import failures
from gateway.api.shapes import Alive, Readiness
from gateway.api.state import State
from gateway.health import readiness
from gateway.keys import Role
from gateway.metrics import CONTENT_TYPE

router = access.router(access.PUBLIC, tags=["health"])
figures = access.router(Role.METRICS, tags=["health"])


@router.get("/livez", response_model=Alive, responses=failures())
@router.get("/healthz", response_model=Alive, responses=failures())
@router.get("/health", response_model=Alive, responses=failures())
async def live() -> Response:
    """The loop answers."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get(
    "/readyz",
    response_model=Readiness,
    responses=failures() | {503: {"model": Readiness, "description": "Nothing can be served, and why"}},
)
async def ready(request: Request) -> Response:
    """200 while a replica in step can serve something; else 503. The reasons, by model and worker, either way."""
    state: State = request.app.state.replicast
    is_ready, story = readiness(state.serving.pool, state.serving.supervisor.facts)
    headers = {} if is_ready else {"retry-after": "1"}
    return Response(orjson.dumps(story), 200 if is_ready else 503, headers, media_type="application/json")


@figures.get("/metrics", response_class=PlainTextResponse, responses=failures())
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    state: State = request.app.state.replicast
    return Response(state.metrics.text(), media_type=CONTENT_TYPE)
