"""What an image request says, in every spelling that clients use. What it means for its model is in orders.py."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gateway.api.body import bad_input
from gateway.api.overlays import Loras, LoraWish, OwnLoras
from shared.cards import ImageFormat
from shared.errors import BadInput, UnknownParameter, UnsupportedOperation

MAX_SEED = 2**63 - 1
MAX_IMAGES = 10
MAX_PROMPT = 32_000
MAX_SIDE = 16_383

# Each field's other names. The first that is given counts; two that differ are an error.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "steps": ("num_inference_steps",),
    "guidance": ("guidance_scale",),
    "scheduler": ("sampler",),
}
# What a `metadata` object may say of a picture, by the name of the field that it stands for.
_METADATA = {name: name for name in ("steps", "guidance", "negative_prompt", "strength", "seed")} | {
    "sampler": "scheduler",
    "scheduler": "scheduler",
}
_LORA = ("loras", "lora_epoch", "lora_path", "lora_id", "lora_scale")

Short = Annotated[str, Field(max_length=256)]
Long = Annotated[str, Field(max_length=4096)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class Wish(BaseModel):
    """The fields that every image route takes: OpenAI's, and ours. Null means absent.

    Fields nobody here knows are ignored, since clients send many; with `strict` they are an error.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    # Fields that another route takes, with what to say here.
    elsewhere: ClassVar[Mapping[str, str]] = {}

    prompt: Prompt = Field("", description="what to draw")
    model: Short | None = Field(None, description="an id of GET /v1/models, or an alias; without it the first of them")
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = Field(None, description="how many images, 1 without it")
    size: Short | None = Field(None, description="WIDTHxHEIGHT, or auto")
    width: Side | None = Field(None, description="with height, instead of size")
    height: Side | None = Field(None, description="with width, instead of size")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="of the first image; the next has the next one. Drawn and reported without it"
    )
    steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="also num_inference_steps")
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="also guidance_scale"
    )
    scheduler: Short | None = Field(None, description="also sampler; one that the model has")
    negative_prompt: Prompt | None = Field(None, description="what not to draw, where the model can be told so")
    response_format: Literal["b64_json", "base64", "url"] | None = Field(
        None, description="the picture itself, or an address of it; base64 is b64_json by another name"
    )
    output_format: ImageFormat | None = Field(None, description="png without it")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="quality of a JPEG or WebP; a PNG keeps every pixel"
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None, description="transparent where the model can, and not as a JPEG"
    )
    stream: bool | None = Field(None, description="the answer comes as events: previews, then each picture")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(None, description="previews, with stream")
    quality: Short | None = Field(None, description="taken for compatibility, without effect: use steps")
    style: Short | None = Field(None, description="taken for compatibility, without effect")
    moderation: Short | None = Field(None, description="taken for compatibility, without effect")
    complexity: Short | None = Field(None, description="taken for compatibility, without effect")
    user: Long | None = Field(None, description="taken for compatibility, without effect")
    safety_identifier: Long | None = Field(None, description="echoed in the answer")
    loras: Loras | None = Field(None, description="in place of the model's own, for this request alone; also none: []")
    lora_path: Annotated[str, Field(max_length=2048)] | None = Field(None, description="one LoRA, by its path")
    lora_scale: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="the strength of lora_path, 1 without it; with 0 there is no LoRA"
    )
    lora_id: Short | None = Field(None, description="what to call lora_path in the answer")
    lora_epoch: Annotated[int, Field(ge=0)] | None = Field(
        None, description="only with this epoch of the model's LoRA state, as GET /v1/list_loras tells it; else 409"
    )
    priority: Annotated[int, Field(ge=-10, le=10)] | None = Field(None, description="higher goes first")
    deterministic: bool | None = Field(None, description="never made in one call with others")
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        None, description="the longest it may take, waiting included; the server's own limit stands"
    )
    return_parameters: bool | None = Field(None, description="the answer tells how to make the picture again")
    strict: bool | None = Field(None, description="fields that are not known are an error")

    @classmethod
    def read(cls, said: Mapping[str, Any], *, text: bool = False) -> Self:
        """The wish in these fields, from JSON or, with `text`, from a form where every value is a text.

        Raises BadInput that names the first field at fault as it was sent.
        """
        known, sent = _canonical(said)
        try:
            return cls._of_texts(known) if text else cls.model_validate(known, strict=True)
        except ValidationError as error:
            raise bad_input(error, sent) from error

    @classmethod
    def _of_texts(cls, known: dict[str, Any]) -> Self:
        # What nobody here knows may be a list, of which pydantic would make an error without a place.
        fields = {name: value for name, value in known.items() if name in cls.model_fields}
        listed = {"loras": _listed(fields.pop("loras"))} if "loras" in fields else {}
        for name, value in fields.items():
            if not isinstance(value, str):
                raise BadInput(f"Invalid '{name}': expected one value.", param=name)
        extra = {name: value for name, value in known.items() if name not in fields and name not in listed}
        return cls.model_validate_strings(fields).model_copy(update=extra | listed)

    def check(self) -> None:
        """Refuse what is understood and cannot be done: it is never ignored. Raises a BadInput."""
        extra = self.extra
        if "lora" in extra:
            raise UnknownParameter("Unknown parameter: 'lora'; did you mean 'loras'?", param="lora")
        for name, why in self.elsewhere.items():
            if name in extra:
                raise UnsupportedOperation(f"'{name}' {why}.", param=name)
        if self.strict and extra:
            name = next(iter(extra))[:64]
            raise UnknownParameter(f"Unknown parameter: '{name}'.", param=name)
        if self.partial_images and not self.stream:
            raise BadInput("'partial_images' needs 'stream': true.", param="partial_images")
        if self.stream and self.response_format == "url":
            raise UnsupportedOperation("A stream carries its pictures: 'url' cannot be streamed.", param="stream")
        if self.background == "transparent" and self.output_format == "jpeg":
            raise BadInput("A JPEG has no transparency: ask for png or webp.", param="background")

    def seeds(self) -> tuple[int, ...]:
        """One seed per image, counted up from the one that was given or drawn."""
        count = self.n or 1
        first = secrets.randbelow(2**32) if self.seed is None else self.seed
        if first + count - 1 > MAX_SEED:
            raise BadInput(f"Invalid 'seed': with n={count} it passes {MAX_SEED}.", param="seed")
        return tuple(range(first, first + count))

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that nobody here knows."""
        return self.__pydantic_extra__ or {}


class Generation(Wish):
    """POST /v1/images/generations."""

    elsewhere = dict.fromkeys(("image", "images", "image_url", "mask", "strength"), "belongs to POST /v1/images/edits")

    prompt: Prompt = Field(description="what to draw")

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        return _not_empty(prompt)


class Edit(Wish):
    """POST /v1/images/edits, without its pictures."""

    elsewhere = {"markup": "is not supported: say in the prompt where to edit, or send a mask"}

    prompt: Prompt = Field(description="what to change, or what to draw under the mask")
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="how much is made anew: under a mask, or of the whole picture instead of an instructed edit"
    )
    input_fidelity: Short | None = Field(None, description="taken for compatibility, without effect")

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        return _not_empty(prompt)


class Variation(Wish):
    """POST /v1/images/variations, without its picture; the prompt may be empty."""

    elsewhere = {"mask": "belongs to POST /v1/images/edits"}

    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="how far from the picture it goes"
    )


def _listed(text: Any) -> list[LoraWish]:
    """The LoRAs in the field of a form, which is JSON. Raises BadInput."""
    try:
        found = orjson.loads(text if isinstance(text, str) else "")
        return OwnLoras.model_validate({"loras": found}, strict=True).loras
    except orjson.JSONDecodeError as error:
        raise BadInput("Invalid 'loras': expected a list of LoRAs as JSON.", param="loras") from error
    except ValidationError as error:
        raise bad_input(error, {}) from error


def _not_empty(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt


def _canonical(said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Every field under its own name, nulls left out, what `metadata` says of the picture beside the rest.

    With it, by field, the other name under which it was sent.
    """
    known = {name: value for name, value in said.items() if value is not None}
    sent: dict[str, str] = {}

    def take(field: str, value: Any, name: str) -> None:
        if field not in known:
            known[field], sent[field] = value, name
        elif known[field] != value:
            raise BadInput(f"'{name}' and '{sent.get(field, field)}' differ.", param=name)

    metadata = known.get("metadata")
    if isinstance(metadata, dict):
        del known["metadata"]
        for name, value in metadata.items():
            field = _METADATA.get(name) or (name if name in _LORA else None)
            if field and value is not None:
                take(field, value, f"metadata.{name}")
    for field, others in SYNONYMS.items():
        for other in others:
            if other in known:
                take(field, known.pop(other), other)
    return known, sent
