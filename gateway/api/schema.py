"""What the published OpenAPI says: the bodies that routes read themselves, their answers, every status."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field

from gateway.api.access import PUBLIC, Guarded
from gateway.api.wishes import Edit, Generation, Variation, Wish

# Every request may meet these; an image request besides may meet those below.
_ALWAYS = (400, 401, 403, 421, 429, 500)
_MAKING = (404, 408, 413, 415, 502, 503, 504, 507)
_MEANINGS = {
    400: "A value that cannot be used; `param` names it",
    401: "No key, or a wrong one",
    403: "Not for this key's role, or from this origin",
    404: "No such model or path",
    408: "The body arrived too slowly",
    410: "It was there, and has expired",
    413: "The body, or a picture in it, is too large",
    415: "The content type cannot be read here",
    421: "The Host header names another server",
    429: "The queue or the key's limit is full: Retry-After says when",
    500: "A bug of the server",
    502: "The workers died of it",
    503: "No replica is ready, or the server is going down: Retry-After says when",
    504: "It took longer than its timeout",
    507: "It does not fit into memory or storage",
}


class ErrorObject(BaseModel):
    """OpenAI's error object, all four keys, whatever the status."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorObject


class InputTokens(BaseModel):
    """What of the input was text, and what pictures."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens that the model read, once for all images, and wrote."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: InputTokens
    total_tokens: int


class Image(BaseModel):
    """One picture, by one of the two, and the seed that makes it again."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Recipe(BaseModel):
    """All it takes to make the first picture again; each further one differs by its seed."""

    model: str
    model_revision: str
    seed: int
    steps: int
    guidance: float
    negative_prompt: str
    size: str
    scheduler: str
    strength: float | None = None
    loras: list[Any]
    lora_epoch: int
    replica: str
    timings_ms: dict[str, float]


class Images(BaseModel):
    """OpenAI's ImagesResponse."""

    created: int = Field(description="Unix seconds")
    data: list[Image]
    background: Literal["opaque", "transparent"]
    output_format: Literal["png", "jpeg", "webp"]
    size: str = Field(description="WIDTHxHEIGHT")
    usage: Usage
    safety_identifier: str | None = None
    replicast: Recipe | None = Field(None, description="with return_parameters")


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers that any route may give when it cannot, and these."""
    return {status: {"model": Error, "description": _MEANINGS[status]} for status in sorted({*_ALWAYS, *statuses})}


def making(wish: type[Wish], example: dict[str, Any], *, pictures: bool = False) -> dict[str, Any]:
    """The description of an image route, as arguments of its decorator."""
    content: dict[str, Any] = {"application/json": {"schema": _fields(wish, json=pictures), "example": example}}
    if pictures:
        content = {"multipart/form-data": {"schema": _fields(wish, form=True)}, **content}
    events = {"schema": {"type": "string"}, "example": _EVENTS}
    done = {"model": Images, "description": "The pictures", "content": {"text/event-stream": events}}
    return {
        "responses": {200: done} | failures(*_MAKING),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def json_body(cls: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The description of a small JSON body that a route reads itself."""
    content = {"application/json": {"schema": cls.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


_EVENTS = (
    'event: image_generation.partial_image\ndata: {"type":"image_generation.partial_image","b64_json":"...",'
    '"partial_image_index":0,"created_at":1700000000,"size":"512x512","quality":"auto","background":"opaque",'
    '"output_format":"png"}\n\n'
)
_PICTURE = {
    "anyOf": [
        {"type": "string", "description": "a data URL"},
        {"type": "object", "properties": {"image_url": {"type": "string"}}, "required": ["image_url"]},
        {"type": "object", "properties": {"data_url": {"type": "string"}}, "required": ["data_url"]},
    ]
}


def _fields(wish: type[Wish], *, json: bool = False, form: bool = False) -> dict[str, Any]:
    schema = wish.model_json_schema()
    fields = schema["properties"]
    masked = issubclass(wish, Edit)
    if json:
        fields["images"] = {"type": "array", "items": _PICTURE, "minItems": 1, "maxItems": 16}
        schema["required"] = [*schema.get("required", ()), "images"]
    if form:
        binary = {"type": "string", "format": "binary"}
        fields["image"] = {"anyOf": [binary, {"type": "array", "items": binary, "maxItems": 16}]}
        schema["required"] = [*schema.get("required", ()), "image"]
        if masked:
            fields["mask"] = binary | {"description": "a PNG; what is transparent in it is edited"}
    elif json and masked:
        fields["mask"] = _PICTURE
    return schema


GENERATION = making(Generation, {"prompt": "a red circle on a blue background", "size": "512x512", "seed": 7})
EDIT = making(Edit, {"prompt": "make it green", "images": [{"image_url": "data:image/png;base64,..."}]}, pictures=True)
VARIATION = making(Variation, {"images": [{"image_url": "data:image/png;base64,..."}]}, pictures=True)


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole description, made once. FastAPI's 422 is left out: this server never answers it."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        routes = [(context.path, context.original_route) for context in iter_route_contexts(app.routes)]
        needs = {path: route.need for path, route in routes if isinstance(route, Guarded)}
        for path, item in schema["paths"].items():
            for operation in item.values():
                operation["responses"].pop("422", None)
                # FastAPI's notation of a path that may hold slashes is not OpenAPI's.
                if needs.get(path, needs.get(path.replace("}", ":path}"))) != PUBLIC:
                    operation["security"] = [{"key": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
