"""What a PNG tells of how it was made."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from shared.loras import NO_LORAS, Adapter, LoraState
from shared.messages import Parameters, Run
from worker import finishing
from worker.backends import Picture

PARAMETERS = Parameters(prompt="a cat", width=64, height=64, steps=4, guidance=1.0, write_parameters=True)
RUN = Run(
    job="j",
    attempt=1,
    model="m",
    task="generate",
    seeds=(7,),
    parameters=PARAMETERS,
    epoch=3,
    digest="d",
    request_id="r",
)
INK = Adapter(name="ink", sha256="a" * 64, scale=0.5)


def told(loras: LoraState) -> dict[str, Any]:
    picture = Picture(7, pixels=np.zeros((64, 64, 3), np.uint8))
    png = Image.open(io.BytesIO(finishing.encoded(picture, RUN, loras)))
    found: dict[str, Any] = json.loads(png.info["parameters"])
    return found


def test_loras_are_told_with_the_strength_that_counted() -> None:
    said = told(LoraState(mode="merged", adapters=(INK,), merge_scale=0.5))
    assert said["loras"] == [{"name": "ink", "sha256": "a" * 64, "scale": 0.25, "target": "all"}]
    assert said["lora_mode"] == "merged"


def test_the_bare_model_draws_the_same_bytes_in_every_epoch() -> None:
    assert told(NO_LORAS).keys() == {"model", "prompt", "negative_prompt", "seed", "size", "steps", "guidance"}
