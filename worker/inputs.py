"""The pictures that a run works from: from the bytes a client sent to the pixels a backend is handed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.errors import BadImage
from shared.messages import Run
from worker import images
from worker.backends import Inputs


def read(run: Run, attachments: Sequence[bytes | memoryview]) -> Inputs:
    """The pictures of `run`, decoded, and its mask; safe to call from any thread.

    The mask is as OpenAI has it, an image whose transparent pixels are to be painted, and becomes an array of (height,
    width) with 255 there. Raises BadImage that names the picture at fault.
    """
    masked = run.task == "inpaint"
    names = _names(len(attachments) - masked) + ["mask"] * masked
    decoded = [_decoded(data, name) for data, name in zip(attachments, names, strict=True)]
    if not masked:
        return Inputs(tuple(images.on_white(pixels) for pixels in decoded))
    *pictures, mask = decoded
    if mask.shape[2] != 4:
        raise BadImage("Invalid mask image: it has no alpha channel, which says where to edit.", param="mask")
    if mask.shape[:2] != pictures[0].shape[:2]:
        (height, width), (mask_height, mask_width) = pictures[0].shape[:2], mask.shape[:2]
        raise BadImage(
            f"Invalid mask image: it is {mask_width}x{mask_height}, the first image is {width}x{height}.", param="mask"
        )
    return Inputs(tuple(images.on_white(pixels) for pixels in pictures), np.uint8(255) - mask[:, :, 3])


def _names(count: int) -> list[str]:
    return ["image"] if count == 1 else [f"image[{place}]" for place in range(count)]


def _decoded(data: bytes | memoryview, name: str) -> images.Pixels:
    try:
        return images.decode_strange(data)
    except ValueError as error:
        raise BadImage(f"Invalid image file for '{name}': {error}.", param=name) from error
