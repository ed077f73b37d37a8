"""What the published OpenAPI says: the bodies that routes read themselves, every status, and an example of each."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from gateway.api.access import PUBLIC, Guarded
from gateway.api.errors import STATUS
from gateway.api.shapes import Completed, Error, Images, Partial
from gateway.api.wishes import SYNONYMS, Edit, Generation, Variation, Wish
from shared import errors

# Every request may meet these; an image request besides may meet those below.
_ALWAYS = (400, 401, 403, 421, 429, 500)
_MAKING = (404, 408, 409, 413, 415, 502, 503, 504, 507)
_MEANINGS = {
    400: "A value that cannot be used; `param` names it",
    401: "No key, or a wrong one",
    403: "Not for this key's role, or from this origin",
    404: "No such model or path",
    408: "The body arrived too slowly",
    409: "It is not as it was when it was asked for, or a replica cannot follow",
    410: "It was there, and has expired",
    413: "The body, or a picture in it, is too large",
    415: "The content type cannot be read here",
    421: "The Host header names another server",
    422: "Lists that belong together have different lengths",
    429: "The queue or the key's limit is full: Retry-After says when",
    500: "The pipeline failed, or the server has a bug",
    502: "The workers died of it",
    503: "No replica is ready, or the server is going down: Retry-After says when",
    504: "It took longer than its timeout",
    507: "It does not fit into memory or storage",
}

# No request hears of these.
_INNER = (errors.ConfigError, errors.LoadFailed, errors.LoraFailed, errors.WireError)


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers that any route may give when it cannot, and these."""
    return {status: {"model": Error, "description": _meaning(status)} for status in sorted({*_ALWAYS, *statuses})}


def _meaning(status: int) -> str:
    codes = [f"`{kind.code}`" for kind, its in STATUS.items() if its == status and kind not in _INNER]
    return f"{_MEANINGS[status]}. `code`: {', '.join(codes)}" if codes else _MEANINGS[status]


def making(wish: type[Wish], example: dict[str, Any], *, pictures: bool = False) -> dict[str, Any]:
    """The description of an image route, as arguments of its decorator."""
    name, kind = wish.__name__, "image_edit" if pictures else "image_generation"
    content: dict[str, Any] = {"application/json": {"schema": _ref(name), "example": example}}
    if pictures:
        content = {"multipart/form-data": {"schema": _ref(f"{name}Form")}, **content}
    answers = {
        "application/json": {"example": _ANSWER},
        "text/event-stream": {"itemSchema": _event(kind), "example": _events(kind)},
    }
    timing = {"description": "where the time went, in milliseconds; not of a stream", "schema": {"type": "string"}}
    done = {
        "model": Images,
        "description": "The pictures; with `stream` as events",
        "content": answers,
        "headers": {"server-timing": timing},
    }
    return {
        "responses": {200: done} | failures(*_MAKING),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def json_body(cls: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The description of a small JSON body that a route reads itself."""
    content = {"application/json": {"schema": cls.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_ANSWER = {
    "created": 1_700_000_000,
    "data": [{"b64_json": "iVBORw0KGgo...", "seed": 7}],
    "background": "opaque",
    "output_format": "png",
    "size": "512x512",
    "usage": {
        "input_tokens": 9,
        "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
        "output_tokens": 64,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 64},
        "total_tokens": 73,
    },
}


def _event(kind: str) -> dict[str, Any]:
    """An event of a stream. What goes wrong once it has begun comes as its last."""
    names = {"type": "string", "enum": [f"{kind}.partial_image", f"{kind}.completed", "error"]}
    content = {"anyOf": [_ref("Partial"), _ref("Completed"), _ref("Error")]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {"type": "object", "properties": {"event": names, "data": data}, "required": ["event", "data"]}


def _events(kind: str) -> str:
    return (
        f'event: {kind}.partial_image\ndata: {{"type":"{kind}.partial_image","b64_json":"...","partial_image_index":0,'
        '"created_at":1700000000,"size":"512x512","quality":"auto","background":"opaque","output_format":"png",'
        '"seed":7,"image_index":0}\n\n'
    )


# A whole picture, so that the examples can be tried as they are: a red square.
_URL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAAA1BMVEXIHh4WiPieAAAAD0lEQVR42mNgGAWjgHwAAAJAAAHg"
    "TR1EAAAAAElFTkSuQmCC"
)
_DATA_URL = {"type": "string", "format": "uri", "description": "a data URL of a PNG, JPEG or WebP"}
_PICTURE = {
    "anyOf": [
        _DATA_URL,
        {"type": "object", "properties": {"image_url": _DATA_URL}, "required": ["image_url"]},
        {"type": "object", "properties": {"data_url": _DATA_URL}, "required": ["data_url"]},
    ]
}
_BINARY = {"type": "string", "format": "binary"}
_SIZE = "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


def _json(wish: type[Wish]) -> dict[str, Any]:
    """What a JSON body of this wish may hold."""
    schema = wish.model_json_schema()
    fields = schema["properties"]
    # In place: a reference would be looked up in the whole document.
    fields["loras"]["anyOf"][0]["items"] = schema.pop("$defs")["LoraWish"]
    if "prompt" in schema.get("required", ()):
        fields["prompt"]["pattern"] = "\\S"
    fields["size"]["anyOf"][0]["pattern"] = _SIZE
    for name, others in SYNONYMS.items():
        fields |= {other: fields[name] | {"title": other, "description": f"the same as {name}"} for other in others}
    if wish is not Generation:
        about = "PNG, JPEG or WebP; what is in them counts, not what they are called"
        fields["images"] = {"type": "array", "items": _PICTURE, "minItems": 1, "maxItems": 16, "description": about}
        schema["required"] = [*schema.get("required", ()), "images"]
    if wish is Edit:
        fields["mask"] = _PICTURE | {"description": "a PNG of the first picture's size; what is transparent is edited"}
    return schema


def _form(wish: type[Wish]) -> dict[str, Any]:
    """The same as a form: nothing is null there, and pictures are files."""
    schema = _json(wish)
    fields = schema["properties"]
    for name, field in fields.items():
        if "anyOf" in field:
            fields[name] = {key: value for key, value in field.items() if key not in ("anyOf", "default")} | field[
                "anyOf"
            ][0]
    fields["loras"] = {"type": "string", "description": "as in a JSON body, as JSON"}
    del fields["images"]
    fields["image"] = {
        "anyOf": [_BINARY, {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": 16}],
        "description": "a PNG, JPEG or WebP, or several; also as image[]",
    }
    if wish is Edit:
        fields["mask"] = _BINARY | {"description": "a PNG of the first picture's size; what is transparent is edited"}
    schema["required"] = [*(name for name in schema["required"] if name != "images"), "image"]
    return schema


_PICTURES = [{"image_url": _URL}]
GENERATION = making(Generation, {"prompt": "a red circle on a blue background", "size": "512x512", "seed": 7})
EDIT = making(Edit, {"prompt": "make it green", "images": _PICTURES}, pictures=True)
VARIATION = making(Variation, {"images": _PICTURES, "response_format": "b64_json"}, pictures=True)

_ABOUT = (
    "Pictures from Diffusers models, by OpenAI's contract, with more fields than it has. "
    "Every error has the same shape, and `param` names the field at fault."
)
_TAGS = [
    {"name": "images", "description": "Make pictures, edit them, vary them; whole, or as a stream of previews"},
    {"name": "jobs", "description": "What waits and what is being made: its place, and when it may be there"},
    {"name": "loras", "description": "LoRAs of a whole model, on every replica or on none"},
    {"name": "catalogue", "description": "LoRAs that were imported, under ids and names"},
    {"name": "models", "description": "What can be asked for, with the bounds and defaults of each"},
    {"name": "administration", "description": "Workers: who they are, drained, restarted, more or fewer"},
    {"name": "sdapi", "description": "AUTOMATIC1111's API, where it is switched on"},
    {"name": "health", "description": "Whether the server lives, whether it can serve, and its figures"},
]
_HEADERS = {
    "x-request-id": {
        "description": "the client's own, if it is up to 128 letters, digits, dots, dashes, underscores; or a new one",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "openai-processing-ms": {"required": True, "schema": {"type": "integer", "minimum": 0}},
}
_RETRY_AFTER = {"description": "seconds until it may be tried again", "schema": {"type": "integer", "minimum": 0}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole description, made once. FastAPI's own 422 is left out: this server never answers it."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary="Diffusers behind one address",
            description=_ABOUT,
            routes=app.routes,
            tags=_TAGS,
        )
        routes = [(context.path, context.original_route) for context in iter_route_contexts(app.routes)]
        needs = {path: route.need for path, route in routes if isinstance(route, Guarded)}
        for path, item in schema["paths"].items():
            for operation in item.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
                # FastAPI's notation of a path that may hold slashes is not OpenAPI's.
                if needs.get(path, needs.get(path.replace("}", ":path}"))) != PUBLIC:
                    operation["security"] = [{"key": []}]
                for status, answer in operation["responses"].items():
                    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
                    again = {"retry-after": _RETRY_AFTER} if status in ("429", "503") else {}
                    answer["headers"] = headers | again | answer.get("headers", {})
        components = schema["components"]
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        components["headers"] = _HEADERS
        named = components["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            named.pop(name, None)
        # In here, since FastAPI would make floats of the bounds, and more than 63 bits of the seed's.
        named |= {wish.__name__: _json(wish) for wish in (Generation, Edit, Variation)}
        named |= {f"{wish.__name__}Form": _form(wish) for wish in (Edit, Variation)}
        for event in (Partial, Completed):
            described = event.model_json_schema(ref_template="#/components/schemas/{model}")
            named |= described.pop("$defs", {}) | {event.__name__: described}
        app.openapi_schema = schema
    return app.openapi_schema
