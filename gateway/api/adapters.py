"""The catalogue of LoRAs: what is in it, what a file is before it is imported, import, delete. As image-pool has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, BinaryIO, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from gateway.api import access, body
from gateway.api.schema import failures, json_body
from gateway.api.state import State
from gateway.keys import Role
from gateway.loras.catalogue import About, Catalogue, Record
from gateway.loras.finder import named
from gateway.loras.inspection import ModelOption
from gateway.loras.places import open_below
from shared.errors import AdapterInUse, BadInput, UnknownAdapter

router = access.router(Role.ADMIN, tags=["catalogue"])

_MAX_BODY = 64 << 10
_READING = failures(404, 408, 413, 415)

Line = Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Title = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]
T = TypeVar("T", bound="Inspect")


class Inspect(BaseModel):
    """A LoRA file below the folder that the setting lora_root names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_path: Annotated[str, Field(min_length=1, max_length=2048)]


class Import(Inspect):
    """A file to import, and what is known of it. `compatible_models` are models that are served here."""

    name: Title
    family: Title
    compatible_models: Annotated[list[Title], Field(min_length=1, max_length=64)]
    trained_on_model_id: Line = ""
    trigger_words: Annotated[list[Title], Field(max_length=64)] = []
    default_strength: Annotated[float, Field(ge=0, le=2)] | None = None
    description: Annotated[str, Field(max_length=4000)] = ""
    source_url: Annotated[str, Field(max_length=2048, pattern=r"^(https?://[!-~]+)?$")] = ""


_FILE = {"source_path": "styles/ink.safetensors"}
_IMPORT = {**_FILE, "name": "Ink", "family": "flux2-klein", "compatible_models": ["shapes"], "trigger_words": ["ink"]}


@router.get("/v1/admin/loras", responses=failures())
async def list_loras(request: Request) -> Response:
    """Every LoRA of the catalogue. Its id, its name or its path may be given wherever a LoRA is named."""
    catalogue = _state(request).catalogue
    rows = [_row(catalogue, record) for record in catalogue.records]
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return _json({"object": "list", "data": rows, **ends, "has_more": False})


@router.post("/v1/admin/loras/inspect", responses=_READING, openapi_extra=json_body(Inspect, _FILE))
async def inspect(request: Request) -> Response:
    """What a LoRA file is: its rank, what it changes, which family and models it may fit, and what is odd about it."""
    asked = await _read(request, Inspect)
    state = _state(request)
    with named(asked.source_path, "source_path"):
        seen, sha256 = await state.catalogue.examine(_opened(state, asked))
    options = _options(state)
    return _json(
        {
            "filename": asked.source_path.rstrip("/").rpartition("/")[2],
            "source_path": asked.source_path,
            "sha256": sha256,
            "size_bytes": seen.size_bytes,
            "metadata": seen.metadata,
            "key_count": seen.key_count,
            "rank": seen.rank,
            "targets": seen.targets,
            "detected_modules": seen.detected_modules,
            "family_guess": seen.family_guess,
            "confidence": seen.confidence,
            "trigger_words": seen.trigger_words,
            "default_strength_suggestion": seen.default_strength_suggestion,
            "compatible_model_suggestions": seen.suggested(options),
            "model_options": [{**asdict(option), "supports_lora": True} for option in options],
            "warnings": seen.warnings,
        }
    )


@router.post(
    "/v1/admin/loras/import", responses=failures(404, 408, 413, 415, 507), openapi_extra=json_body(Import, _IMPORT)
)
async def import_lora(request: Request) -> Response:
    """Copy a LoRA file into the catalogue, with what is said of it; the file itself stays where it is."""
    asked = await _read(request, Import)
    state = _state(request)
    _expect_models(state, asked)
    about = About.model_validate(asked.model_dump(exclude={"source_path"}))
    with named(asked.source_path, "source_path"):
        record = await state.catalogue.add(_opened(state, asked), about, time.time())
    return _json({"lora": _row(state.catalogue, record)})


# An id has a slash in it, raw or as %2F.
@router.delete("/v1/admin/loras/{id:path}", responses=failures(404, 409))
async def delete_lora(request: Request, id: str) -> Response:
    """Remove a LoRA from the catalogue, unless it is active on a model. A nickname that stands for it still does."""
    state = _state(request)
    record = state.catalogue.get(id)
    if record is None:
        raise UnknownAdapter(f"There is no LoRA '{id[:128]}' in the catalogue.", param="id")
    models = [m.id for m in state.serving.pool.wanted.models if record.sha256 in {a.sha256 for a in m.loras.adapters}]
    if models:
        raise AdapterInUse(f"The LoRA '{id}' is active on {', '.join(models)}: set others there first.", param="id")
    await state.catalogue.delete(record)
    return _json({"id": record.id, "object": "lora", "deleted": True})


async def _read(request: Request, cls: type[T]) -> T:
    try:
        return cls.model_validate(await body.parse(request, _MAX_BODY), strict=True)
    except ValidationError as error:
        raise body.bad_input(error, {}) from error


def _opened(state: State, asked: Inspect) -> Callable[[], BinaryIO]:
    root = state.settings.lora_root
    if root is None:
        raise BadInput(
            "This server takes no files by their path: its setting lora_root is not set.", param="source_path"
        )
    return partial(open_below, root, asked.source_path)


def _expect_models(state: State, asked: Import) -> None:
    options = {option.id: option for option in _options(state)}
    for name in asked.compatible_models:
        option = options.get(name)
        if option is None:
            raise BadInput(f"Unknown compatible model: {name}", param="compatible_models")
        # What no replica has loaded yet has not told its family.
        if option.family not in ("", asked.family):
            raise BadInput(f"Model {name} is not in LoRA family {asked.family}.", param="compatible_models")


def _options(state: State) -> list[ModelOption]:
    options = []
    for model in state.serving.pool.wanted.models:
        card = state.find_card(model.id)
        options.append(ModelOption(model.id, card.family if card else "", model.backend))
    return options


def _row(catalogue: Catalogue, record: Record) -> dict[str, Any]:
    path = catalogue.path(record)
    return {
        "id": record.id,
        "object": "lora",
        "name": record.name,
        "family": record.family,
        "source_type": "imported",
        "artifact_type": "adapter",
        "kind": "imported",
        "run_id": "",
        "dataset": "",
        "trained_on_model_id": record.trained_on_model_id,
        "model": record.trained_on_model_id,
        "compatible_models": record.compatible_models,
        "trigger_words": record.trigger_words,
        "trigger_word": record.trigger_words[0] if record.trigger_words else "",
        "default_strength": record.default_strength,
        "description": record.description,
        "source_url": record.source_url,
        "path": str(path),
        "display_path": f"{record.id}/{path.name}",
        "size_bytes": record.size_bytes,
        "sha256": record.sha256,
        "rank": record.rank,
        "targets": record.targets,
        "checkpoint_id": "",
        "checkpoint_step": None,
        "imported_at": record.imported_at,
    }


def _state(request: Request) -> State:
    state: State = request.app.state.replicast
    return state


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
