"""The LoRAs that a request brings along: in place of its model's own, for its pictures alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.loras.places import SUFFIX
from shared.errors import BadInput, UnknownAdapter
from shared.loras import MAX_SCALE, Adapter, Target

if TYPE_CHECKING:
    from gateway.api.state import State
    from gateway.api.wishes import Wish
    from gateway.store.epochs import Nickname

MAX_LORAS = 8

Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
Named = Annotated[str, Field(min_length=1, max_length=2048)]


class LoraWish(BaseModel):
    """One LoRA: by a nickname or an id of the catalogue, or by its path; how strong, and where it acts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Named | None = Field(None, description="as it was loaded, or as the catalogue has it")
    path: Named | None = Field(None, description="its file, below the folder of LoRAs")
    scale: Scale = Field(1.0, description="times its own alpha / rank")
    target: Target = Field("all", description="the part of the model on which it acts")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.name is None and self.path is None:
            raise ValueError("a LoRA has a 'name' or a 'path'")
        return self


Loras = Annotated[list[LoraWish], Field(max_length=MAX_LORAS)]


class OwnLoras(BaseModel):
    """The LoRAs of a form by the name of their field, so that what is wrong with them is told by it."""

    loras: Loras


async def overlay(state: State, wish: Wish) -> tuple[Adapter, ...] | None:
    """The LoRAs of a request, their files found; None where it says nothing of any, and the model's own hold.

    Raises UnknownModel, UnknownAdapter, or a BadInput that names the field.
    """
    if wish.loras is None and wish.lora_path is None:
        if wish.lora_scale is not None:
            raise BadInput("'lora_scale' needs 'lora_path'.", param="lora_scale")
        return None
    if wish.loras is not None and wish.lora_path is not None:
        raise BadInput("'loras' and 'lora_path' exclude each other.", param="lora_path")
    model = state.resolve(wish.model)
    if wish.lora_path is not None:
        scale = 1.0 if wish.lora_scale is None else wish.lora_scale
        if not wish.lora_path:
            return None
        if scale == 0:
            return ()
        file = await state.find_lora(wish.lora_path, "lora_path")
        return (Adapter(name=wish.lora_id or wish.lora_path, sha256=file.sha256, scale=scale),)
    found = []
    for place, asked in enumerate(wish.loras or ()):
        known = state.loras.held(model).names.get(asked.name or "") if asked.path is None else None
        field = "path" if asked.path is not None else "name"
        name = asked.path or asked.name or ""
        file = known or await _found(state, name, f"loras[{place}].{field}")
        found.append(Adapter(name=asked.name or name, sha256=file.sha256, scale=asked.scale, target=asked.target))
    return tuple(found)


async def _found(state: State, name: str, field: str) -> Nickname:
    """The file of this name, which may lack its suffix."""
    try:
        return await state.find_lora(name, field)
    except UnknownAdapter:
        if name.endswith(SUFFIX) or "://" in name:
            raise
    return await state.find_lora(name + SUFFIX, field)


def told(made_with: tuple[tuple[Adapter, float], ...]) -> list[dict[str, Any]]:
    """LoRAs as an answer has them: each so that it could be asked for again, its strength as it counted."""
    return [
        {"name": each.name, "sha256": each.sha256, "scale": scale, "target": each.target} for each, scale in made_with
    ]
