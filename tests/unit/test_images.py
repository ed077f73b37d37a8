"""Pictures as bytes: PNG keeps every pixel, the others stay close, the text can be read by anybody."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shared.cards import ImageFormat
from worker import images

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, channels: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(side: int, channels: int = 3) -> Pixels:
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    return np.stack(
        [ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], *[np.full((side, side), 128)] * (channels - 2)], 2
    ).astype(np.uint8)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (1, 7), (7, 1), (33, 65), (300, 500)])
@pytest.mark.parametrize("channels", [3, 4])
def test_png_keeps_every_pixel(shape: tuple[int, int], channels: int) -> None:
    pixels = noise(*shape, channels)
    image = opened(images.encode(pixels, "png"))
    assert image.mode == ("RGB" if channels == 3 else "RGBA")
    assert np.array_equal(np.array(image), pixels)
    assert np.array_equal(images.decode(images.encode(pixels, "png")), pixels)


def test_png_takes_pixels_as_they_lie_in_memory() -> None:
    pixels = noise(40, 30, 4)[::2, ::-1, :3]
    assert np.array_equal(images.decode(images.encode(pixels, "png")), pixels)


@pytest.mark.parametrize("text", ["a red circle", "Größe: 3", "円 🔴", "two\nlines", "lone \ud800 half"])
def test_png_carries_a_text(text: str) -> None:
    image = opened(images.encode(noise(8, 8, 3), "png", parameters=text))
    assert image.info["parameters"] == text.encode("utf-8", "replace").decode()


def test_png_drops_from_a_text_what_would_end_it() -> None:
    assert opened(images.encode(noise(8, 8, 3), "png", parameters="a\0b")).info["parameters"] == "ab"


def test_png_without_a_text_has_no_text_chunk() -> None:
    assert "parameters" not in opened(images.encode(noise(8, 8, 3), "png")).info


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_the_lossy_formats_stay_close_at_their_best(form: ImageFormat) -> None:
    pixels = smooth(128)
    image = opened(images.encode(pixels, form, 100))
    assert image.format == form.upper()
    assert np.abs(np.array(image.convert("RGB")).astype(int) - pixels).mean() < 2


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_more_is_better_and_larger(form: ImageFormat) -> None:
    sizes = [len(images.encode(noise(64, 64, 3), form, compression)) for compression in (0, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_jpeg_lays_a_transparent_picture_on_white() -> None:
    clear = np.zeros((16, 16, 4), np.uint8)
    assert np.array(opened(images.encode(clear, "jpeg"))).min() > 250


def test_webp_keeps_transparency() -> None:
    clear = np.zeros((16, 16, 4), np.uint8)
    assert np.array(opened(images.encode(clear, "webp")))[..., 3].max() == 0


def test_enlarging_repeats_every_pixel() -> None:
    pixels = noise(5, 3, 3)
    large = images.enlarge(pixels, 4)
    assert large.shape == (20, 12, 3)
    assert all(np.array_equal(large[row::4, column::4], pixels) for row in range(4) for column in range(4))
    assert images.enlarge(pixels, 1) is pixels
