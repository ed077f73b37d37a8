"""What a generation request says, and what that means for its model: every default resolved, or an error."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from shared.errors import BadInput, UnknownParameter, UnsupportedOperation, UnsupportedSize
from shared.messages import ImageFormat, ModelCard, Parameters, Size

MAX_SEED = 2**63 - 1
MAX_IMAGES = 10
MAX_PROMPT = 32_000
# Pixels times steps of one request, all its images together: ten of 1024x1024 with 100 steps.
MAX_WORK = MAX_IMAGES * 1024 * 1024 * 100
_MAX_SIDE = 16_384
# Fields of the interface that change the picture and cannot be honoured yet.
_NOT_YET = ("lora", "loras", "lora_epoch", "image", "images", "mask", "strength", "scheduler", "sampler")

Short = Annotated[str, Field(max_length=256)]


class GenerationRequest(BaseModel):
    """OpenAI's fields and ours. Null means absent. Fields nobody here knows are ignored, since clients send many."""

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    model: Short | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Short | None = None
    width: Annotated[int, Field(ge=1, le=_MAX_SIDE)] | None = None
    height: Annotated[int, Field(ge=1, le=_MAX_SIDE)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, validation_alias=AliasChoices("steps", "num_inference_steps")
    )
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, validation_alias=AliasChoices("guidance", "guidance_scale")
    )
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    response_format: Literal["b64_json", "base64", "url"] | None = None
    output_format: ImageFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    quality: Short | None = None
    style: Short | None = None
    moderation: Short | None = None
    complexity: Short | None = None
    user: Annotated[str, Field(max_length=4096)] | None = None
    safety_identifier: Annotated[str, Field(max_length=4096)] | None = None
    strict: bool | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        return prompt

    def supported(self) -> None:
        """Refuse what is understood but cannot be done yet: never ignored, never something else in silence."""
        if self.response_format == "url":
            raise UnsupportedOperation(
                "response_format 'url' is not supported yet: ask for 'b64_json'.", param="response_format"
            )
        if self.stream:
            raise UnsupportedOperation("Streaming is not supported yet.", param="stream")
        if self.partial_images:
            raise UnsupportedOperation(
                "Partial images need streaming, which is not supported yet.", param="partial_images"
            )
        asked = [name for name in _NOT_YET if name in self._extra]
        if asked:
            raise UnsupportedOperation(f"'{asked[0]}' is not supported yet.", param=asked[0])
        if self.strict and self._extra:
            name = next(iter(self._extra))[:64]
            raise UnknownParameter(f"Unknown parameter: '{name}'.", param=name)
        if self.background == "transparent":
            raise UnsupportedOperation("Transparent background is not supported for this model.", param="background")

    def resolve(self, card: ModelCard, *, write_parameters: bool) -> Parameters:
        """The parameters of one image for a model of this card. Raises BadInput where it cannot do exactly that."""
        size = self._size(card)
        steps = self.steps or card.steps
        guidance = card.guidance if self.guidance is None else self.guidance
        if steps > card.max_steps:
            raise BadInput(f"Invalid 'steps': expected a value of at most {card.max_steps}.", param="steps")
        if guidance > card.max_guidance:
            raise BadInput(f"Invalid 'guidance': expected a value of at most {card.max_guidance}.", param="guidance")
        if self.negative_prompt and not card.negative_prompt:
            raise UnsupportedOperation("This model takes no negative prompt.", param="negative_prompt")
        if (self.n or 1) * size.width * size.height * steps > MAX_WORK:
            raise BadInput("The request is too large: n x width x height x steps passes the limit.", param="n")
        return Parameters(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=size.width,
            height=size.height,
            steps=steps,
            guidance=guidance,
            output_format=self.output_format or "png",
            output_compression=100 if self.output_compression is None else self.output_compression,
            write_parameters=write_parameters,
        )

    def seeds(self) -> tuple[int, ...]:
        """One seed per image, counted up from the one that was given or drawn."""
        count = self.n or 1
        first = secrets.randbelow(2**32) if self.seed is None else self.seed
        if first + count - 1 > MAX_SEED:
            raise BadInput(f"Invalid 'seed': with n={count} it passes {MAX_SEED}.", param="seed")
        return tuple(range(first, first + count))

    def unknown(self) -> int:
        """How many keys nobody here knows."""
        return len(self._extra)

    @property
    def _extra(self) -> dict[str, object]:
        return {name: value for name, value in (self.__pydantic_extra__ or {}).items() if value is not None}

    def _size(self, card: ModelCard) -> Size:
        if (self.width is None) != (self.height is None):
            raise BadInput("'width' and 'height' go together.", param="width" if self.width is None else "height")
        if self.width is not None and self.height is not None:
            if self.size not in (None, "auto", f"{self.width}x{self.height}"):
                raise BadInput("'size' and 'width' x 'height' differ.", param="size")
            size = Size(width=self.width, height=self.height)
        elif self.size is None or self.size == "auto":
            return card.sizes.default
        else:
            size = _parse_size(self.size)
        if not card.sizes.fits(size):
            near = ", ".join(str(candidate) for candidate in card.sizes.nearest(size))
            raise UnsupportedSize(f"Invalid size '{size}': this model makes, nearest to it, {near}.", param="size")
        return size


def _parse_size(text: str) -> Size:
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()) or len(text) > 11:
        raise BadInput("Invalid 'size': expected 'auto' or WIDTHxHEIGHT, for example '512x512'.", param="size")
    if not (1 <= int(width) <= _MAX_SIDE and 1 <= int(height) <= _MAX_SIDE):
        raise BadInput(f"Invalid 'size': each side is at least 1 and at most {_MAX_SIDE}.", param="size")
    return Size(width=int(width), height=int(height))
