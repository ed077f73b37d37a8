"""The bodies of answers, as they are published. Nothing is made from these: what is answered is written by hand."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from shared.cards import Task


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


class Partial(BaseModel):
    """An event `image_generation.partial_image` or `image_edit.partial_image`: what the picture will be."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: str
    partial_image_index: int = Field(description="from 0, of each picture anew; some may be left out")
    image_index: int = Field(description="which of the n pictures, from 0")
    seed: int
    created_at: int = Field(description="Unix seconds")
    size: str = Field(description="WIDTHxHEIGHT")
    quality: Literal["auto"]
    background: Literal["opaque", "transparent"]
    output_format: Literal["png", "jpeg", "webp"]


class Completed(BaseModel):
    """An event `image_generation.completed` or `image_edit.completed`: the picture, and the last word about it."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: str
    image_index: int = Field(description="which of the n pictures, from 0")
    seed: int
    created_at: int = Field(description="Unix seconds")
    size: str = Field(description="WIDTHxHEIGHT")
    quality: Literal["auto"]
    background: Literal["opaque", "transparent"]
    output_format: Literal["png", "jpeg", "webp"]
    usage: Usage
    replicast: Recipe | None = Field(None, description="with return_parameters")


class Model(BaseModel):
    """A model, by OpenAI's four keys, whether it can serve, and, once a worker holds it, what it can do."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Unix seconds, of the server's start")
    owned_by: str
    backend: str
    ready: bool
    replicas_ready: int
    family: str | None = None
    revision: str | None = None
    description: str | None = None
    capabilities: list[Task] | None = None
    recommended_steps: int | None = None
    recommended_guidance: float | None = None
    vocabulary: list[str] | None = Field(None, description="the words that a small model knows; empty: any")
    generation_parameters: dict[str, dict[str, Any]] | None = Field(None, description="bounds and defaults by field")
    edit_parameters: dict[str, dict[str, Any]] | None = Field(None, description="the same of an edit; empty: it cannot")


class Models(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"]
    data: list[Model]


class Alive(BaseModel):
    """All there is to say of a loop that answers."""

    status: Literal["ok"]


class ModelReadiness(BaseModel):
    """Whether a model can be served, by how many replicas, and if not, why."""

    ready: bool
    replicas_ready: int
    replicas: int
    reason: str | None = None
    problems: dict[str, str] | None = Field(None, description="by worker")


class WorkerReadiness(BaseModel):
    """How a worker is; the three last while it is connected."""

    state: str
    restarts: int
    last_error: str | None = None
    in_step: bool | None = None
    suspect: bool | None = None
    jobs: int | None = None


class Readiness(BaseModel):
    """The story of every model and worker; degraded: some can be served, others not."""

    status: Literal["ready", "degraded", "not_ready", "draining"]
    models: dict[str, ModelReadiness]
    workers: dict[str, WorkerReadiness]
