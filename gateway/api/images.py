"""POST /v1/images/generations."""

from __future__ import annotations

import asyncio
import secrets
import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.api import body
from gateway.api.generations import GenerationRequest
from gateway.api.state import State
from gateway.jobs.job import Job, Result
from gateway.responses import images_body, server_timing
from shared.messages import Size

router = APIRouter()

_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerationRequest.model_json_schema(by_alias=False)}},
    }
}


@router.post("/v1/images/generations", openapi_extra=_SCHEMA, tags=["images"])
async def generate(request: Request) -> Response:
    """Make pictures from a prompt; each is a job of its own, so that n of them spread over the replicas."""
    state: State = request.app.state.replicast
    arrived = time.monotonic()
    wish = await body.parse(request, GenerationRequest, state.settings.max_body_bytes)
    wish.supported()
    model = wish.model or state.default_model
    card = state.card(model)
    parameters = wish.resolve(card, write_parameters=state.settings.png_parameters)
    seeds = wish.seeds()
    if unknown := wish.unknown():
        state.metrics.ignored.inc(unknown)
    longest = state.settings.request_timeout_seconds
    request_id = request.scope["state"]["request_id"]
    jobs = [
        Job(
            id=secrets.token_hex(8),
            model=model,
            task="generate",
            parameters=parameters,
            seeds=(seed,),
            submitted=arrived,
            deadline=arrived + min(wish.timeout_seconds or longest, longest),
            request_id=request_id,
        )
        for seed in seeds
    ]
    results = await _unless_gone(request, state, jobs)
    _count(state, model, results)
    size = Size(width=parameters.width, height=parameters.height)
    content = images_body(results, created=int(time.time()), output_format=parameters.output_format, size=size)
    headers = {"server-timing": server_timing(results, (time.monotonic() - arrived) * 1000)}
    return Response(content, headers=headers, media_type="application/json")


async def _unless_gone(request: Request, state: State, jobs: list[Job]) -> list[Result]:
    """The results, unless the client leaves first: then its jobs are withdrawn at once."""
    watch = asyncio.create_task(_withdraw_when_gone(request, state, jobs))
    try:
        return await state.serving.run(jobs)
    finally:
        watch.cancel()


async def _withdraw_when_gone(request: Request, state: State, jobs: list[Job]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    state.serving.withdraw(jobs)


def _count(state: State, model: str, results: list[Result]) -> None:
    for result in results:
        state.metrics.images.labels(model).inc(len(result.images))
        state.metrics.image_bytes.labels(model).inc(sum(facts.bytes for facts in result.facts))
        timings = result.timings
        phases = {
            "queue": result.queue_ms + timings.wait_ms,
            "inference": timings.inference_ms,
            "encode": timings.encode_ms,
        }
        for phase, ms in phases.items():
            state.metrics.phases.labels(model, phase).observe(ms / 1000)
