"""GET /v1/models and /v1/models/{id}: what can be asked for now."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from gateway.api import access
from gateway.api.schema import failures
from gateway.api.shapes import Model, Models
from gateway.api.state import State
from gateway.api.wishes import MAX_IMAGES, MAX_SEED
from gateway.health import ready_replicas
from gateway.keys import Role
from shared.cards import ModelCard

router = access.router(Role.INFERENCE, tags=["models"])

_ALL = {
    "name": "all",
    "in": "query",
    "description": "those that cannot serve now too",
    "schema": {"type": "boolean", "default": False},
}


@router.get("/v1/models", response_model=Models, responses=failures(), openapi_extra={"parameters": [_ALL]})
async def list_models(request: Request) -> Response:
    """The models that can serve now; with `?all=true` every one that is configured."""
    state: State = request.app.state.replicast
    everything = request.query_params.get("all") == "true"
    shown = {
        model.id: model.id
        for model in state.serving.pool.wanted.models
        if everything or ready_replicas(state.serving.pool, model.id)
    }
    # Some clients offer only names that they know: an alias that is written out is one, a pattern is none.
    aliases = {name: model or state.default_model for name, model in state.settings.aliases() if "*" not in name}
    shown |= {name: model for name, model in aliases.items() if model in shown and name not in shown}
    return _json({"object": "list", "data": [_row(state, model, name) for name, model in shown.items()]})


# An id may contain slashes, raw or as %2F.
@router.get("/v1/models/{model:path}", response_model=Model, responses=failures(404))
async def get_model(request: Request, model: str) -> Response:
    """One configured model, ready or not, by its id or an alias."""
    state: State = request.app.state.replicast
    return _json(_row(state, state.resolve(model), model))


def _row(state: State, model: str, name: str) -> dict[str, Any]:
    """The model as it is called `name`."""
    replicas = ready_replicas(state.serving.pool, model)
    card = state.find_card(model)
    row: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "replicast",
        "backend": state.wanted(model).backend,
        "ready": replicas > 0,
        "replicas_ready": replicas,
    }
    if name != model:
        row["alias_of"] = model
    return row | _abilities(card) if card else row


def _abilities(card: ModelCard) -> dict[str, Any]:
    making = _parameters(card)
    return {
        "family": card.family,
        "revision": card.revision,
        "description": card.description,
        "capabilities": list(card.tasks),
        "recommended_steps": card.steps,
        "recommended_guidance": card.guidance,
        "vocabulary": list(card.vocabulary),
        "generation_parameters": making,
        "edit_parameters": making | _editing(card) if "edit" in card.tasks else {},
    }


def _parameters(card: ModelCard) -> dict[str, Any]:
    return {
        "prompt": {"type": "string", "required": True},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES, "default": 1},
        "size": _sizes(card),
        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
        "steps": {"type": "integer", "minimum": 1, "maximum": card.max_steps, "default": card.steps},
        "guidance": {"type": "number", "minimum": 0, "maximum": card.max_guidance, "default": card.guidance},
        "negative_prompt": {"type": "string", "supported": card.negative_prompt},
        "scheduler": {"type": "string", "enum": ["auto", *([card.scheduler] if card.scheduler else [])]},
        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"], "default": "png"},
        "background": {"type": "string", "enum": ["auto", "opaque", *(["transparent"] if card.transparent else [])]},
        "partial_images": {"type": "integer", "minimum": 0, "maximum": 3, "default": 0},
    }


def _editing(card: ModelCard) -> dict[str, Any]:
    """What an edit may say besides. `maximum_images` are the pictures that may come with a mask."""
    masks = "inpaint" in card.tasks
    return {
        # The one closest to the first picture.
        "size": _sizes(card) | {"default": "auto"},
        "image": {"type": "file", "required": True, "maximum": card.max_images},
        "mask": {"type": "file", "supported": masks, "maximum_images": card.max_masked_images if masks else 0},
        "strength": {"type": "number", "above": 0, "maximum": 1, "default": card.strength},
    }


def _sizes(card: ModelCard) -> dict[str, Any]:
    rule = card.sizes
    sizes: dict[str, Any] = {"type": "string", "default": str(rule.default)}
    if rule.allowed:
        sizes["enum"] = ["auto", *(str(size) for size in rule.allowed)]
    else:
        sizes |= {
            "multiple": rule.multiple,
            "minimum_side": rule.min_side,
            "maximum_side": rule.max_side,
            "maximum_pixels": rule.max_pixels,
        }
    if rule.native:
        sizes |= {"native": str(rule.native), "enlargement": rule.enlargement}
    return sizes


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
