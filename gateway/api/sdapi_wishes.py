"""What AUTOMATIC1111's clients ask for, in their words, and the wish of this house that it means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.api.body import bad_input
from gateway.api.wishes import MAX_IMAGES, MAX_SEED, Generation, Prompt, Short, Side, Variation
from shared.cards import Size
from shared.errors import BadInput, ReplicastError, UnsupportedOperation
from shared.messages import MaskKind

# Of each picture while it is made: enough to watch, few enough to cost nothing.
_PREVIEWS = 2
_MAX_BLUR = 64

# What would change the picture and cannot be done here. Clients send most of these with a value that asks for nothing.
_REFUSED = (
    "enable_hr",
    "tiling",
    "restore_faces",
    "styles",
    "script_name",
    "alwayson_scripts",
    "refiner_checkpoint",
    "subseed_strength",
    "seed_resize_from_w",
    "seed_resize_from_h",
    "infotext",
)
_NOTHING: tuple[object, ...] = (None, False, 0, -1, "", "None", [], {})
# What a prompt may name in that syntax, and what cannot be had by it: it would be drawn as words.
_NETWORKS = ("<lyco:", "<hypernet:")
# Its name, its strength, and what may follow for single blocks, which cannot be had.
_LORA = re.compile(r"<lora:([^:<>]{1,256})(?::([^:<>]{0,32}))?(:[^<>]*)?>", re.IGNORECASE)

# Our names of what a request says, and theirs.
_THEIRS = {
    "model": "override_settings.sd_model_checkpoint",
    "guidance": "cfg_scale",
    "n": "batch_size",
    "size": "width",
    "image": "init_images",
    "strength": "denoising_strength",
}

_OF_THE_MODEL = "taken without effect: a model has one, and the answer names it"


@contextmanager
def in_their_words(**changed: str) -> Iterator[None]:
    """Errors that name a field of ours are raised again with the name under which it was sent, `changed` first."""
    try:
        yield
    except ReplicastError as error:
        if (theirs := (_THEIRS | changed).get(error.param or "")) is None:
            raise
        message = error.message
        if isinstance(error, BadInput):
            message = message.replace(f"'{error.param}'", f"'{theirs}'")
        raise type(error)(message, param=theirs, retry_after_seconds=error.retry_after_seconds) from error


class Txt2Img(BaseModel):
    """POST /sdapi/v1/txt2img. Null means absent, numbers may be texts, and what is not here is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = Field(-1, description="-1: drawn, and told in the answer")
    steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="the model's own without it")
    cfg_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="the model's own without it"
    )
    width: Side = 512
    height: Side = 512
    batch_size: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    n_iter: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = Field(1, description=f"times batch_size: at most {MAX_IMAGES}")
    sampler_name: Short | None = Field(None, description=_OF_THE_MODEL)
    sampler_index: Short | None = Field(None, description=_OF_THE_MODEL)
    scheduler: Short | None = Field(None, description=_OF_THE_MODEL)
    override_settings: dict[str, Any] = Field({}, description="sd_model_checkpoint: the model; all else is ignored")
    send_images: bool = True

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Self:
        """What a body asks for. Raises BadInput that names the first field at fault."""
        for name in _REFUSED:
            if said.get(name) not in _NOTHING:
                raise UnsupportedOperation(f"'{name}' is not supported.", param=name)
        try:
            return cls.model_validate({name: value for name, value in said.items() if value is not None})
        except ValidationError as error:
            raise bad_input(error, {}) from error

    @property
    def model(self) -> str | None:
        """The model that is named. Raises BadInput."""
        name = self.override_settings.get("sd_model_checkpoint") or None
        if name is not None and (not isinstance(name, str) or len(name) > 256):
            theirs = _THEIRS["model"]
            raise BadInput(f"Invalid type for '{theirs}': expected a string.", param=theirs)
        return name

    def generation(self, model: str | None) -> Generation:
        """The wish for new pictures, of `model` where none is named."""
        return Generation.read(self._said(model) | {"width": self.width, "height": self.height})

    def _said(self, model: str | None) -> dict[str, Any]:
        count = self.batch_size * self.n_iter
        if count > MAX_IMAGES:
            raise BadInput(f"Invalid 'n_iter': batch_size x n_iter is at most {MAX_IMAGES}.", param="n_iter")
        if any(network in self.prompt.lower() for network in _NETWORKS):
            raise UnsupportedOperation(
                "The prompt names a network other than <lora:...>: not supported.", param="prompt"
            )
        return {
            "prompt": _LORA.sub("", self.prompt),
            "loras": [_lora(*found.groups()) for found in _LORA.finditer(self.prompt)] or None,
            "negative_prompt": self.negative_prompt,
            "model": self.model or model,
            "n": count,
            "seed": None if self.seed == -1 else self.seed,
            "steps": self.steps,
            "guidance": self.cfg_scale,
            # Previews are for streams; this answer is whole, and its previews are seen by asking for the progress.
            "stream": True,
            "partial_images": _PREVIEWS,
        }


def _lora(name: str, strength: str | None, blocks: str | None) -> dict[str, Any]:
    """One LoRA of a prompt. Raises BadInput."""
    try:
        if blocks:
            raise ValueError
        return {"name": name, "scale": float(strength) if strength else 1.0}
    except ValueError as error:
        raise BadInput("Invalid 'prompt': a LoRA is written <lora:name:strength>.", param="prompt") from error


class Repaint(Variation):
    """A picture redrawn, whole or where a mask of theirs says."""

    mask_kind: MaskKind = "white"
    mask_blur: int = 0
    stretch: bool = True


class Img2Img(Txt2Img):
    """POST /sdapi/v1/img2img, without its pictures."""

    denoising_strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.75
    resize_mode: Annotated[int, Field(ge=0, le=3)] = Field(
        0, description="of a picture of another shape: 0 stretches it, 1 cuts out its middle, but not under a mask"
    )
    mask_blur: Annotated[int, Field(ge=0, le=_MAX_BLUR)] = Field(4, description="0 keeps what is outside exactly")
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] = Field(0, description="1: paint what is black")

    def repaint(self, model: str | None, picture: Size, *, masked: bool) -> Repaint:
        """The wish to work on a picture of this size, with `model` where none is named."""
        asked = Size(width=self.width, height=self.height)
        alike = asked.width * picture.height == asked.height * picture.width
        if self.resize_mode == 3 or (not alike and (self.resize_mode == 2 or (self.resize_mode == 1 and masked))):
            raise UnsupportedOperation(
                f"'resize_mode' {self.resize_mode} is not supported for a picture of {picture} at {asked}.",
                param="resize_mode",
            )
        said = self._said(model) | {
            "strength": self.denoising_strength,
            "mask_kind": "black" if self.inpainting_mask_invert else "white",
            "mask_blur": self.mask_blur,
            "stretch": self.resize_mode != 1,
        }
        if not (masked and asked == picture):
            # Under a mask a picture's own size can always be made, and is what is made when none is asked for.
            said |= {"width": self.width, "height": self.height}
        return Repaint.read(said)
