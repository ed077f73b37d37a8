"""A request's body: read with a bound, parsed once; every fault is a BadInput that names the field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from shared.errors import BadInput, BadJson, Cancelled, TooLarge, TooSlow, UnsupportedMedia

_PATIENCE_SECONDS = 30.0
# After that a body must have come at least this fast.
_LEAST_BYTES_PER_SECOND = 16 << 10
# Each value stands behind one of these. A body of pictures has few, while one of the same length that is nothing but
# values takes seconds to parse and thirty times its length in memory.
_BEGINNINGS = (b",", b"[", b"{")
_MOST_VALUES = 1 << 17


async def chunks(request: Request, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, at most `most_bytes`, counted: a client's word about its length is not believed.

    Raises TooLarge, TooSlow for one that trickles, QueueFull while too much else arrives, and Cancelled if the client
    leaves.
    """
    too_large = TooLarge(f"The request body is larger than {most_bytes} bytes.")
    declared = request.headers.get("content-length", "0")
    # int() refuses more than some thousand digits.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > most_bytes):
        raise too_large
    intake = request.app.state.replicast.intake
    loop = asyncio.get_running_loop()
    began, size = loop.time(), 0
    stream = aiter(request.stream())
    try:
        while True:
            async with asyncio.timeout_at(began + _PATIENCE_SECONDS + size / _LEAST_BYTES_PER_SECOND):
                piece = await anext(stream, None)
            if piece is None:
                return
            size += len(piece)
            if size > most_bytes:
                raise too_large
            intake.take(request.scope["state"], len(piece))
            yield piece
    except TimeoutError as error:
        raise TooSlow("The request body arrives too slowly.") from error
    except ClientDisconnect as error:
        raise Cancelled("The client went away.") from error


async def parse(request: Request, most_bytes: int, *, empty: bool = False) -> dict[str, Any]:
    """The body as a JSON object. JSON is JSON whatever its label, as `curl -d` sends it, unless a browser sent it.

    No body at all is an empty object where it may be `empty`.
    """
    expect_json(request)
    content = b"".join([piece async for piece in chunks(request, most_bytes)])
    if empty and not content:
        return {}
    if sum(map(content.count, _BEGINNINGS)) > _MOST_VALUES:
        raise BadJson("The request body has too many values.")
    try:
        value: Any = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadJson(f"The request body is not valid JSON: {where}.") from error
    if not isinstance(value, dict):
        raise BadJson("The request body must be a JSON object.")
    return value


def expect_json(request: Request) -> None:
    """Raise UnsupportedMedia for a form, and for what a browser sends anywhere without asking first."""
    label = media_type(request)
    if label == "multipart/form-data" or (label != "application/json" and "origin" in request.headers):
        raise UnsupportedMedia("Send the request as application/json.")


def media_type(request: Request) -> str:
    """What the request says its body is, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


_EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "a smaller integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a string",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "dict_type": "an object",
    "list_type": "an array",
    "finite_number": "a finite number",
}


def bad_input(error: ValidationError, sent: Mapping[str, str]) -> BadInput:
    """The first fault, in words, without the value: it may be anything. `sent` names fields as the client did."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(step) for step in first["loc"])
    name = sent.get(field, field) or None
    limits = first.get("ctx", {})
    match first["type"]:
        case "missing":
            message = f"Missing required parameter: '{name}'."
        case kind if kind in _EXPECTED:
            message = f"Invalid type for '{name}': expected {_EXPECTED[kind]}."
        case "greater_than_equal":
            message = f"Invalid '{name}': expected a value of at least {limits['ge']}."
        case "greater_than":
            message = f"Invalid '{name}': expected a value above {limits['gt']}."
        case "less_than_equal" | "less_than":
            message = f"Invalid '{name}': expected a value of at most {limits.get('le', limits.get('lt'))}."
        case "string_too_long":
            message = f"Invalid '{name}': at most {limits['max_length']} characters."
        case "literal_error":
            message = f"Invalid value for '{name}': supported values are {limits['expected']}."
        case _:
            message = f"Invalid '{name}': {first['msg'].removeprefix('Value error, ')}."
    return BadInput(message, param=name)
