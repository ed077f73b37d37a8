"""How a stub behaves, from the options of its model: its time, its size, and the faults it was told to have."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import LoadFailed
from shared.messages import WantedModel


class Options(BaseModel):
    """How a stub behaves, from the model's options. Steps are counted from 1 over all pictures of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: int = Field(4, ge=1, description="default steps of the card")
    step_seconds: float = Field(0.0, ge=0, description="each step takes this long")
    load_seconds: float = Field(0.0, ge=0, description="loading takes this long")
    constant: bool = Field(False, description="the same PNG of about 400 KB for every request, encoded once")
    gate: str = Field("", description="each step waits until this file exists")
    batch: int = Field(1, ge=1, le=64, description="pictures that one call makes, in the time of one")
    poison: str = Field("", description="a run whose prompt has this word ends the process at its first step")
    hang: str = Field("", description="a run whose prompt has this word never ends, without a sign of life")
    oom: str = Field("", description="a run whose prompt has this word runs out of memory")
    garbage: str = Field("", description="a run whose prompt has this word brings bytes that are no picture")
    slow: str = Field("", description="steps of a run whose prompt has this word take ten times as long")
    fail_at_step: int = Field(0, ge=0, description="raises JobFailed")
    oom_at_step: int = Field(0, ge=0, description="raises OutOfMemory")
    hang_at_step: int = Field(0, ge=0, description="never returns, without a sign of life")
    exit_at_step: int = Field(0, ge=0, description="ends the process")
    fail_load: bool = Field(False, description="loading raises LoadFailed")
    exit_load: bool = Field(False, description="loading ends the process")
    prepare_seconds: float = Field(0.0, ge=0, description="preparing a LoRA state takes this long")
    adopt_seconds: float = Field(0.0, ge=0, description="adopting a LoRA state takes this long")
    fail_prepare: str = Field("", description="a LoRA whose name has this word is refused when it is prepared")
    exit_prepare: str = Field("", description="a LoRA whose name has this word ends the process when it is prepared")
    fail_adopt: str = Field("", description="a LoRA whose name has this word fails when it is adopted, half-way")
    fail_adopt_times: int = Field(0, ge=0, description="and so many times only, then never again; 0 is always")
    exit_adopt: str = Field("", description="a LoRA whose name has this word ends the process when it is adopted")
    fail_overlay: str = Field("", description="a run with a LoRA whose name has this word leaves it behind")
    struck: str = Field("", description="these faults come only to the replica that first takes away this file")

    @classmethod
    def of(cls, model: WantedModel) -> Options:
        """The options of `model`. Raises LoadFailed naming each one that is unknown or of the wrong type."""
        try:
            return cls.model_validate(model.options)
        except ValidationError as error:
            problems = "; ".join(_explained(problem) for problem in error.errors(include_url=False))
            raise LoadFailed(f"{model.id}: {problems}") from error


def _explained(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"option {name!r}: {problem['msg']}"
    near = difflib.get_close_matches(name, Options.model_fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(Options.model_fields)}"
    return f"option {name!r} is unknown; {hint}"
