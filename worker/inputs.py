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

    The mask becomes an array of (height, width) with 255 where it says to paint. One that is read by its transparency
    has the size of the first picture; any other may have its own, and is brought to the picture's later, as that is.
    Raises BadImage that names the picture at fault.
    """
    masked = run.task == "inpaint"
    names = _names(len(attachments) - masked) + ["mask"] * masked
    decoded = [_decoded(data, name) for data, name in zip(attachments, names, strict=True)]
    if not masked:
        return Inputs(tuple(images.on_white(pixels) for pixels in decoded))
    *pictures, mask = decoded
    asked = run.parameters
    if asked.mask_kind == "transparent":
        painted = _where_transparent(mask, pictures[0])
    else:
        painted = _where_white(mask)
        if asked.mask_kind == "black":
            painted = np.uint8(255) - painted
    return Inputs(tuple(images.on_white(pixels) for pixels in pictures), images.blurred(painted, asked.mask_blur))


def _where_transparent(mask: images.Pixels, picture: images.Pixels) -> images.Pixels:
    if mask.shape[2] != 4:
        raise BadImage("Invalid mask image: it has no alpha channel, which says where to edit.", param="mask")
    if mask.shape[:2] != picture.shape[:2]:
        (height, width), (mask_height, mask_width) = picture.shape[:2], mask.shape[:2]
        raise BadImage(
            f"Invalid mask image: it is {mask_width}x{mask_height}, the first image is {width}x{height}.", param="mask"
        )
    return np.uint8(255) - mask[:, :, 3]


def _where_white(mask: images.Pixels) -> images.Pixels:
    """How bright each pixel is; of a drawing on a clear layer, how much was drawn there, in whatever colour."""
    if mask.shape[2] == 4 and mask[:, :, 3].min() < 255:
        return mask[:, :, 3]
    return images.grey(mask)


def _names(count: int) -> list[str]:
    return ["image"] if count == 1 else [f"image[{place}]" for place in range(count)]


def _decoded(data: bytes | memoryview, name: str) -> images.Pixels:
    try:
        return images.decode_strange(data)
    except ValueError as error:
        raise BadImage(f"Invalid image file for '{name}': {error}.", param=name) from error
