"""Pictures at other sizes, on other grounds and under masks: by examples, and whatever the pixels are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.cards import Size
from worker import images

Pixels = NDArray[np.uint8]
SIDES = st.integers(1, 40)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(height: int, width: int, *colour: int) -> Pixels:
    return np.full((height, width, len(colour)), colour, np.uint8)


@pytest.mark.parametrize(
    ("alpha", "shown"),
    [(255, [10, 100, 200]), (0, [255, 255, 255]), (128, [132, 177, 227]), (1, [254, 254, 255])],
)
def test_what_is_transparent_shows_white(alpha: int, shown: list[int]) -> None:
    assert images.on_white(flat(2, 3, 10, 100, 200, alpha)).tolist() == [[shown] * 3] * 2


def test_what_is_opaque_already_is_not_touched() -> None:
    pixels = noise(5, 7)
    assert images.on_white(pixels) is pixels
    opaque = np.dstack((pixels, np.full((5, 7), 255, np.uint8)))
    assert np.array_equal(images.on_white(opaque), pixels)


@settings(deadline=None, derandomize=True)
@given(SIDES, SIDES, st.integers(0, 99))
def test_where_the_mask_says_nothing_every_pixel_stays(height: int, width: int, seed: int) -> None:
    ground, picture = noise(height, width, seed=seed), noise(height, width, seed=seed + 1)
    mask = noise(height, width, 0, seed + 2)
    mask[mask < 80] = 0
    mask[mask > 180] = 255
    for mixed in (
        images.laid_over(ground, picture, mask),
        images.laid_over(ground, np.dstack((picture, np.full(mask.shape, 255, np.uint8))), mask),
    ):
        assert np.array_equal(mixed[mask == 0][:, :3], ground[mask == 0])
        assert np.array_equal(mixed[mask == 255][:, :3], picture[mask == 255])
        low, high = np.minimum(ground, picture), np.maximum(ground, picture)
        assert ((low <= mixed[:, :, :3]) & (mixed[:, :, :3] <= high)).all()


def test_a_transparent_picture_makes_a_hole_under_the_mask_and_nowhere_else() -> None:
    mask = np.array([[0, 255, 51]], np.uint8)
    mixed = images.laid_over(flat(1, 3, 9, 9, 9), np.zeros((1, 3, 4), np.uint8), mask)
    assert mixed.tolist() == [[[9, 9, 9, 255], [0, 0, 0, 0], [7, 7, 7, 204]]]


def test_a_picture_of_many_bands_is_mixed_to_its_last_row() -> None:
    height = 3 * images._BAND + 5
    ground, picture, mask = noise(height, 3), noise(height, 3, seed=1), np.zeros((height, 3), np.uint8)
    mask[-1] = 255
    mixed = images.laid_over(ground, picture, mask)
    assert np.array_equal(mixed[:-1], ground[:-1])
    assert np.array_equal(mixed[-1], picture[-1])


@settings(deadline=None, derandomize=True)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([0, 3]))
def test_a_picture_has_the_size_it_is_brought_to_and_no_new_colours(
    height: int, width: int, to_height: int, to_width: int, channels: int
) -> None:
    pixels = noise(height, width, channels)
    size = Size(width=to_width, height=to_height)
    made = images.resize(pixels, size)
    assert made.shape == (to_height, to_width, *pixels.shape[2:])
    assert made.dtype == np.uint8
    if (width, height) == (to_width, to_height):
        assert made is pixels
    uniform = images.resize(np.full_like(pixels, 77), size)
    assert (uniform == 77).all()
    covered = images.cover(pixels, size)
    assert covered.shape == made.shape


def test_a_picture_shrinks_by_area() -> None:
    pixels = noise(8, 8)
    small = images.resize(pixels, Size(width=4, height=2))
    blocks = pixels.reshape(2, 4, 4, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 1


def test_the_middle_of_a_picture_covers_another_shape() -> None:
    columns = np.repeat(np.arange(10, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    assert images.cover(columns, Size(width=4, height=4))[0, :, 0].tolist() == [3, 4, 5, 6]
    assert images.cover(columns, Size(width=2, height=4))[0, :, 0].tolist() == [4, 5]
    rows = columns.swapaxes(0, 1)
    assert images.cover(rows, Size(width=4, height=4))[:, 0, 0].tolist() == [3, 4, 5, 6]
    assert images.cover(columns, Size(width=20, height=8)).shape == (8, 20, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 4000), (4000, 1), (1, 1)])
def test_the_thinnest_picture_covers_too(width: int, height: int) -> None:
    for size in (Size(width=64, height=64), Size(width=2048, height=64), Size(width=1, height=1)):
        assert images.cover(noise(height, width), size).shape == (size.height, size.width, 3)
