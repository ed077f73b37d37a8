"""A JSON body: read with a bound, parsed once, held to its type; every fault is a BadInput that names the field."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from shared.errors import BadInput, BadJson, Cancelled, TooLarge, TooSlow, UnsupportedMedia

_Body = TypeVar("_Body", bound=BaseModel)
_BODY_SECONDS = 30.0


async def read(request: Request, most_bytes: int) -> bytes:
    """The whole body, at most `most_bytes`, counted as it arrives: a client's word about its length is not believed."""
    too_large = TooLarge(f"The request body is larger than {most_bytes} bytes.")
    declared = request.headers.get("content-length", "0")
    # int() refuses more than some thousand digits.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > most_bytes):
        raise too_large
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size > most_bytes:
                    raise too_large
                pieces.append(piece)
    except TimeoutError as error:
        raise TooSlow(f"The request body did not arrive within {_BODY_SECONDS:g} seconds.") from error
    except ClientDisconnect as error:
        raise Cancelled("The client went away.") from error
    return b"".join(pieces)


async def parse(request: Request, cls: type[_Body], most_bytes: int) -> _Body:
    """The body as a `cls`. JSON is JSON whatever its label, as `curl -d` sends it, unless a browser sent it."""
    label = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if label == "multipart/form-data" or (label != "application/json" and "origin" in request.headers):
        raise UnsupportedMedia("Send the request as application/json.")
    content = await read(request, most_bytes)
    try:
        value: Any = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadJson(f"The request body is not valid JSON: {_where(error)}.") from error
    if not isinstance(value, dict):
        raise BadJson("The request body must be a JSON object.")
    try:
        return cls.model_validate(value, strict=True)
    except ValidationError as error:
        raise _bad_input(error) from error


def _where(error: orjson.JSONDecodeError) -> str:
    return f"line {error.lineno}, column {error.colno}"


_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "a boolean",
    "dict_type": "an object",
    "list_type": "an array",
    "finite_number": "a finite number",
}


def _bad_input(error: ValidationError) -> BadInput:
    """The first fault, in words, without the value: it may be anything."""
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(step) for step in first["loc"]) or None
    limits = first.get("ctx", {})
    match first["type"]:
        case "missing":
            message = f"Missing required parameter: '{name}'."
        case kind if kind in _EXPECTED:
            message = f"Invalid type for '{name}': expected {_EXPECTED[kind]}."
        case "greater_than_equal" | "greater_than":
            message = f"Invalid '{name}': expected a value of at least {limits.get('ge', limits.get('gt'))}."
        case "less_than_equal" | "less_than":
            message = f"Invalid '{name}': expected a value of at most {limits.get('le', limits.get('lt'))}."
        case "string_too_long":
            message = f"Invalid '{name}': at most {limits['max_length']} characters."
        case "literal_error":
            message = f"Invalid value for '{name}': supported values are {limits['expected']}."
        case _:
            message = f"Invalid '{name}': {first['msg'].removeprefix('Value error, ')}."
    return BadInput(message, param=name)
