"""AUTOMATIC1111's /sdapi/v1, for the front ends that speak nothing else: a thin translation onto the one path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from gateway import responses, uploads
from gateway.api import access, answers, body, orders, sdapi_answers, sdapi_desk
from gateway.api.overlays import overlay
from gateway.api.schema import failures
from gateway.api.sdapi_desk import Caller, Desk, Running
from gateway.api.sdapi_wishes import Img2Img, Txt2Img, in_their_words
from gateway.api.state import State
from gateway.api.wishes import Wish
from gateway.jobs.job import Outcome, Result
from gateway.keys import Role
from gateway.uploads import Upload
from shared.cards import Task
from shared.errors import BadInput, ReplicastError, UnsupportedOperation

router = access.router(Role.INFERENCE, prefix="/sdapi/v1", tags=["sdapi"])


class Pictures(BaseModel):
    """The pictures, as bare base64 of PNG files; `info` is a text that is JSON."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class Progress(BaseModel):
    """How far the caller's oldest order is; all of it 0 when there is none."""

    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None
    textinfo: str | None


def _asking(asked: type[Txt2Img], pictures: Mapping[str, object]) -> dict[str, Any]:
    """The description of a route that makes pictures, as arguments of its decorator."""
    fields = asked.model_json_schema()
    fields["properties"] |= pictures
    if pictures:
        fields["required"] = ["init_images"]
    return {
        "responses": {200: {"model": Pictures}} | failures(404, 408, 413, 415, 502, 503, 504, 507),
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": fields}}}},
    }


_PICTURE = {"type": "string", "description": "a data URL, or bare base64, of a PNG, JPEG or WebP"}
_GIVEN = {"init_images": {"type": "array", "items": _PICTURE, "minItems": 1, "maxItems": 1}, "mask": _PICTURE}


@router.post("/txt2img", **_asking(Txt2Img, {}))
async def txt2img(request: Request) -> Response:
    """Make pictures from a prompt."""
    arrived = time.monotonic()
    asked = Txt2Img.read(await body.parse(request, _state(request).settings.max_body_bytes))
    with in_their_words():
        return await _answer(request, asked, asked.generation(_caller(request).model), "generate", (), arrived)


@router.post("/img2img", **_asking(Img2Img, _GIVEN))
async def img2img(request: Request) -> Response:
    """Redraw a picture, or what of it a mask has white."""
    arrived = time.monotonic()
    settings = _state(request).settings
    # Base64 is a third longer than what it stands for.
    said = await body.parse(request, settings.max_upload_bytes // 3 * 4 + settings.max_body_bytes)
    given, mask = said.pop("init_images", None), said.pop("mask", None)
    asked = Img2Img.read(said)
    if not isinstance(given, list) or len(given) != 1:
        raise BadInput("Invalid 'init_images': expected an array of one picture.", param="init_images")
    bounds = uploads.Bounds(settings.max_image_bytes, settings.max_image_pixels)
    pictures = [_held("init_images", given[0], bounds), *([_held("mask", mask, bounds)] if mask else [])]
    with in_their_words():
        wish = asked.repaint(_caller(request).model, pictures[0].header.size, masked=bool(mask))
        return await _answer(request, asked, wish, "inpaint" if mask else "variation", pictures, arrived)


@router.get("/progress", responses=failures() | {200: {"model": Progress}})
async def progress(request: Request, skip_current_image: bool = False) -> Response:
    """How far the caller's oldest order is, and what its newest picture will be."""
    running = next(iter(_caller(request).running), None)
    said = sdapi_desk.progress(running, time.monotonic())
    preview = [*running.shown.values()][-1:] if running and not skip_current_image else []
    return Response(responses.progress_body(said, *preview), media_type="application/json")


@router.post("/interrupt", responses=failures(415))
async def interrupt(request: Request) -> Response:
    """End all that the caller has asked for, at the next step: each is answered with what is there of it."""
    body.expect_json(request)
    for running in _caller(request).running:
        running.interrupted = True
        _state(request).serving.withdraw(running.order.jobs)
    return _json({})


@router.post("/skip", responses=failures(415))
async def skip(request: Request) -> Response:
    """End the caller's pictures that are being made, and go on with those that are not."""
    body.expect_json(request)
    for running in _caller(request).running:
        running.skipped = True
        _state(request).serving.withdraw([job for job in running.order.jobs if job.started])
    return _json(None)


@router.get("/options", responses=failures())
async def options(request: Request) -> Response:
    """What is set for the caller."""
    model = _caller(request).model or _state(request).default_model
    return _json({"sd_model_checkpoint": model, "sd_checkpoint_hash": None, "sd_vae": "None", "samples_format": "png"})


@router.post("/options", responses=failures(404, 408, 413, 415))
async def set_options(request: Request) -> Response:
    """Set the model of the caller's later requests that name none. All else can be sent, and has no effect."""
    state = _state(request)
    said = await body.parse(request, state.settings.max_body_bytes)
    if name := said.get("sd_model_checkpoint"):
        if not isinstance(name, str):
            raise BadInput("Invalid type for 'sd_model_checkpoint': expected a string.", param="sd_model_checkpoint")
        with in_their_words(model="sd_model_checkpoint"):
            _caller(request).model = state.resolve(name)
    return _json(None)


def _state(request: Request) -> State:
    state: State = request.app.state.replicast
    return state


def _caller(request: Request) -> Caller:
    desk: Desk = request.app.state.sdapi
    return desk.caller(request)


async def _answer(
    request: Request, asked: Txt2Img, wish: Wish, task: Task, inputs: Sequence[Upload], arrived: float
) -> Response:
    state, caller = _state(request), _caller(request)
    said = request.scope["state"]
    order = orders.place(state, wish, task, said["caller"], said["story"], arrived, inputs, await overlay(state, wish))
    running = Running(request.url.path.rpartition("/")[2], order)
    caller.running.append(running)
    try:
        outcomes = await _drawn(request, state, running)
    finally:
        caller.running.remove(running)
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    for result in results:
        order.story.came(result)
    there = sdapi_answers.pictures(running, outcomes)
    content = responses.webui_body(
        [picture.image for picture in there] if asked.send_images else [],
        sdapi_answers.parameters(asked, order),
        sdapi_answers.info(asked, running, there),
    )
    headers = {"server-timing": responses.server_timing(answers.phases(order, results))} if results else {}
    return Response(content, headers=headers, media_type="application/json")


async def _drawn(request: Request, state: State, running: Running) -> list[Outcome]:
    """What became of each picture. Raises what keeps one of them, unless the caller ended it."""
    order = running.order
    async with answers.carried_out(request, state, order, running.show) as waiting:
        for outcome in asyncio.as_completed(waiting):
            if isinstance(got := await outcome, ReplicastError) and not running.excuses(got):
                raise got
        return [answer.result() for answer in waiting]


def _held(name: str, value: object, bounds: uploads.Bounds) -> Upload:
    if not isinstance(value, str):
        raise BadInput(f"Invalid type for '{name}': expected a data URL, or base64.", param=name)
    if value[:6].lower() in ("https:", "http:/"):
        raise UnsupportedOperation(f"'{name}': no address is fetched; send a data URL.", param=name)
    return bounds.admit(name, bounds.decode(name, value))


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
