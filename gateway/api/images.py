"""POST /v1/images/generations, /edits and /variations: each reads its request, and the rest is the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from fastapi import Request
from starlette.responses import Response

from gateway import responses, uploads
from gateway.api import access, answers, body, forms, orders, schema
from gateway.api.files import absolute
from gateway.api.overlays import overlay
from gateway.api.state import State
from gateway.api.wishes import Edit, Generation, Variation, Wish
from gateway.keys import Role
from gateway.uploads import Upload
from shared.cards import Task
from shared.errors import BadInput, TooLarge, UnsupportedOperation

router = access.router(Role.INFERENCE, tags=["images"])

# Names under which OpenAI's clients expect an address, unless they say otherwise.
_LINKING = ("dall-e-2", "dall-e-3")
_MAX_REFERENCES = 16


@router.post("/v1/images/generations", **schema.GENERATION)
async def generate(request: Request) -> Response:
    """Make pictures from a prompt; each is a job of its own, so that n of them spread over the replicas."""
    arrived = time.monotonic()
    wish = Generation.read(await body.parse(request, _state(request).settings.max_body_bytes))
    return await _answer(request, wish, "generate", (), arrived)


@router.post("/v1/images/edits", **schema.EDIT)
async def edit(request: Request) -> Response:
    """Edit pictures as a prompt says: the whole, or what a mask leaves transparent.

    As a form with `image` (or `image[]`) and `mask`, or as JSON with `images` and `mask` by data URL.
    """
    arrived = time.monotonic()
    said, pictures, masks, text = await _pictures(request)
    wish = Edit.read(said, text=text)
    if not pictures:
        raise BadInput("Missing required parameter: 'image'.", param="image")
    if len(masks) > 1:
        raise BadInput("Only one mask can be given.", param="mask")
    task: Task = "inpaint" if masks else "variation" if wish.strength is not None else "edit"
    return await _answer(request, wish, task, [*pictures, *masks], arrived)


@router.post("/v1/images/variations", **schema.VARIATION)
async def vary(request: Request) -> Response:
    """Make other pictures like the one that is given."""
    arrived = time.monotonic()
    said, pictures, masks, text = await _pictures(request)
    wish = Variation.read(said, text=text)
    if masks:
        raise UnsupportedOperation("'mask' belongs to POST /v1/images/edits.", param="mask")
    if len(pictures) != 1:
        raise BadInput("A variation is made of exactly one image.", param="image")
    return await _answer(request, wish, "variation", pictures, arrived)


def _state(request: Request) -> State:
    state: State = request.app.state.replicast
    return state


async def _answer(request: Request, wish: Wish, task: Task, inputs: Sequence[Upload], arrived: float) -> Response:
    state = _state(request)
    said = request.scope["state"]
    order = orders.place(state, wish, task, said["caller"], said["story"], arrived, inputs, await overlay(state, wish))
    if wish.stream:
        name = "image_generation" if task == "generate" else "image_edit"
        return await answers.streamed(request, state, order, name)
    if _linked(wish, request.url.path):
        # Before anything is made: a picture that cannot be kept is not worth making.
        with state.results.reserve(len(order.jobs) * _most_bytes(order)) as room:
            results = await answers.whole(request, state, order)
            form = order.parameters.output_format
            paths = [await state.results.save(image, form, room) for result in results for image in result.images]
        urls = [absolute(request, state.settings, path) for path in paths]
        content = responses.links_body(results, urls, created=order.created, echo=answers.echo(order, results))
    else:
        results = await answers.whole(request, state, order)
        content = responses.images_body(results, created=order.created, echo=answers.echo(order, results))
    headers = {"server-timing": responses.server_timing(answers.phases(order, results))}
    return Response(content, headers=headers, media_type="application/json")


def _linked(wish: Wish, path: str) -> bool:
    """Whether the answer has addresses instead of pictures: as was said, else as the clients of old models expect."""
    if wish.response_format is not None:
        return wish.response_format == "url"
    return path.endswith("/variations") or any(fnmatchcase(wish.model or "", name) for name in _LINKING)


def _most_bytes(order: orders.Order) -> int:
    """What a picture takes at most: pixels that cannot be compressed, and the text beside them."""
    return order.parameters.width * order.parameters.height * 4 + 4 * (len(order.wish.prompt) + (64 << 10))


async def _pictures(request: Request) -> tuple[dict[str, Any], list[Upload], list[Upload], bool]:
    """What a form or a JSON body says, its pictures and its masks, and whether its values are texts."""
    settings = _state(request).settings
    bounds = uploads.Bounds(settings.max_image_bytes, settings.max_image_pixels)
    if body.media_type(request) != "multipart/form-data":
        # Base64 is a third longer than what it stands for.
        said = await body.parse(request, settings.max_upload_bytes // 3 * 4 + settings.max_body_bytes)
        found = {name: _references(said, name) for name in ("images", "image", "mask")}
        images = [*found["images"], *found["image"]]
        given = [await _held(request, name, value, bounds) for name, value in images]
        masks = [await _held(request, name, value, bounds) for name, value in found["mask"]]
        if sum(len(upload.data) for upload in (*given, *masks)) > settings.max_upload_bytes:
            raise TooLarge(f"The images are larger than {settings.max_upload_bytes} bytes together.", param="images")
        return said, given, masks, False
    form = await forms.read(request, settings.max_upload_bytes + settings.max_body_bytes)
    held: dict[str, list[Upload]] = {"image": [], "mask": []}
    for name, to in (("image", "image"), ("images", "image"), ("mask", "mask")):
        files = form.files.pop(name, [])
        # A picture may also come as a text that is a data URL.
        texts = form.texts.pop(name, [])
        files += [bounds.decode(name, text) for text in ([texts] if isinstance(texts, str) else texts)]
        for place, data in enumerate(files):
            held[to].append(bounds.admit(name if len(files) == 1 else f"{name}[{place}]", data))
    if form.files:
        name = next(iter(form.files))[:64]
        raise BadInput(f"Unexpected file in the field '{name}': expected 'image' or 'mask'.", param=name)
    return form.texts, held["image"], held["mask"], True


def _references(said: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    """What a JSON body names under `name`, one or a list, each with where it stands."""
    value = said.pop(name, None)
    if value is None:
        return []
    if not isinstance(value, list):
        return [(name, value)]
    if len(value) > _MAX_REFERENCES:
        raise BadInput(f"Invalid '{name}': at most {_MAX_REFERENCES} images.", param=name)
    return [(f"{name}[{place}]", each) for place, each in enumerate(value)]


async def _held(request: Request, name: str, value: object, bounds: uploads.Bounds) -> Upload:
    found = uploads.reference(name, value, bounds)
    if isinstance(found, str):
        found = await _state(request).fetcher.fetch(found, bounds.most_bytes, param=name)
    return bounds.admit(name, found)
