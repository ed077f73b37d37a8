"""Real pictures for tests, unlike the hollow ones: made, opened, and compared."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def rgb(data: bytes) -> Pixels:
    return np.asarray(opened(data).convert("RGB"))


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noise(seed: int, width: int = 96, height: int = 64) -> Pixels:
    """A picture unlike any other."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def window(width: int, height: int) -> tuple[bytes, NDArray[np.bool_]]:
    """A mask that leaves the left third open, and where it does."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[:, : width // 3, 3] = 0
    return png(pixels), pixels[:, :, 3] == 0


def told(*given: Pixels) -> list[str]:
    """What the stub says of the pictures that it worked from, if they were these."""
    return [hashlib.sha256(pixels.tobytes()).hexdigest()[:8] for pixels in given]


def likeness(one: Pixels, two: Pixels) -> float:
    """The correlation of two pictures, both brought to a few pixels."""
    small = [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BOX)).ravel() for each in (one, two)]
    return float(np.corrcoef(*small)[0, 1])
