"""From the pixels a backend leaves to the bytes that were asked for. Pure; for any thread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared.cards import Size
from shared.loras import NO_LORAS, LoraState
from shared.messages import ImageFacts, Run, Tokens
from worker import images
from worker.backends import Picture


def encoded(picture: Picture, run: Run, loras: LoraState = NO_LORAS) -> bytes:
    """The picture in its format; a PNG with what it was made from, if that was asked for, with these LoRAs."""
    if picture.encoded is not None:
        return picture.encoded
    assert picture.pixels is not None
    wish = run.parameters
    text = _parameters(run, picture.seed, loras) if wish.write_parameters else None
    return images.encode(picture.pixels, wish.output_format, wish.output_compression, text)


def preview(pixels: images.Pixels, run: Run) -> bytes:
    """A preview in the format and at the size of the picture that it announces."""
    wish = run.parameters
    shown = images.resize(pixels, Size(width=wish.width, height=wish.height))
    return images.encode(shown, wish.output_format, wish.output_compression)


def facts(picture: Picture, run: Run, data: bytes) -> ImageFacts:
    """What an attachment of Done holds."""
    wish = run.parameters
    return ImageFacts(
        seed=picture.seed, width=wish.width, height=wish.height, format=wish.output_format, bytes=len(data)
    )


def tokens(pictures: Sequence[Picture]) -> Tokens:
    """The tokens of a whole run: what was read is the same for each of its pictures, and read anew for each."""
    return Tokens(
        text=sum(picture.tokens.text for picture in pictures),
        image_in=sum(picture.tokens.image_in for picture in pictures),
        image_out=sum(picture.tokens.image_out for picture in pictures),
    )


def _parameters(run: Run, seed: int, loras: LoraState) -> str:
    """What a picture was made from, as JSON: nothing in it depends on the replica, so that equal seeds stay equal."""
    wish = run.parameters
    said: dict[str, Any] = {
        "model": run.model,
        "prompt": wish.prompt,
        "negative_prompt": wish.negative_prompt,
        "seed": seed,
        "size": f"{wish.width}x{wish.height}",
        "steps": wish.steps,
        "guidance": wish.guidance,
    }
    if run.task != "generate":
        said["task"] = run.task
    if wish.strength is not None:
        said["strength"] = wish.strength
    if used := [
        {"name": each.name, "sha256": each.sha256, "scale": scale, "target": each.target}
        for each, scale in loras.effective()
    ]:
        # Without the epoch: the same LoRAs make the same picture in any.
        said |= {"loras": used, "lora_mode": loras.mode}
    return json.dumps(said, ensure_ascii=False)
