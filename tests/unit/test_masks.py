"""How each kind of mask is read: by what is clear in it or by its brightness, sharp or blurred."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import BadImage
from shared.messages import Parameters, Run
from worker import images, inputs

Pixels = NDArray[np.uint8]

GROUND = np.full((32, 48, 3), 90, np.uint8)
# Grey from 0 to 255 over the width.
RAMP = np.linspace(0, 255, 48).astype(np.uint8)[None, :].repeat(32, axis=0)


def inpainting(**asked: Any) -> Run:
    parameters = Parameters(prompt="x", width=48, height=32, steps=1, guidance=1.0, **asked)
    return Run(job="j", attempt=1, model="m", task="inpaint", seeds=(1,), parameters=parameters, epoch=0, digest="d")


def read(mask: Pixels, **asked: Any) -> Pixels:
    """The mask as a backend is handed it."""
    given = inputs.read(inpainting(**asked), [images.encode(each, "png") for each in (GROUND, mask)])
    assert given.mask is not None
    assert given.mask.dtype == np.uint8
    assert given.mask.ndim == 2
    return given.mask


def colours(*channels: Pixels) -> Pixels:
    return np.stack(channels, axis=2)


def test_what_is_transparent_is_painted_unless_another_kind_is_named() -> None:
    mask = colours(RAMP, RAMP, RAMP, RAMP)
    assert np.array_equal(read(mask), 255 - RAMP)
    with pytest.raises(BadImage, match="no alpha channel") as wrong:
        read(colours(RAMP, RAMP, RAMP))
    assert wrong.value.param == "mask"
    with pytest.raises(BadImage, match="48x16"):
        read(mask[:16])


def test_white_is_painted_and_grey_is_painted_partly() -> None:
    mask = colours(RAMP, RAMP, RAMP)
    assert np.array_equal(read(mask, mask_kind="white"), RAMP)
    assert np.array_equal(read(mask, mask_kind="black"), 255 - RAMP)


def test_colours_count_by_how_bright_they_are() -> None:
    zero = np.zeros_like(RAMP)
    full = zero + 255
    for channels, bright in (((full, zero, zero), 76), ((zero, full, zero), 150), ((zero, zero, full), 29)):
        assert np.array_equal(read(colours(*channels), mask_kind="white"), zero + bright)


def test_what_is_drawn_on_a_clear_layer_is_painted_whatever_its_colour() -> None:
    black = np.zeros_like(RAMP)
    drawn = np.where(RAMP > 100, np.uint8(255), np.uint8(0))
    assert np.array_equal(read(colours(black, black, black, drawn), mask_kind="white"), drawn)
    assert np.array_equal(read(colours(black, black, black, drawn), mask_kind="black"), 255 - drawn)
    # An alpha channel without a clear pixel says nothing.
    assert np.array_equal(read(colours(RAMP, RAMP, RAMP, black + 255), mask_kind="white"), RAMP)


def test_a_mask_read_by_its_brightness_may_have_a_size_of_its_own() -> None:
    assert read(colours(RAMP, RAMP, RAMP)[:16, :16], mask_kind="white").shape == (16, 16)


def test_edges_run_out_over_the_blur_and_only_over_it() -> None:
    sharp = np.zeros_like(RAMP)
    sharp[:, 24:] = 255
    mask = colours(sharp, sharp, sharp)
    assert np.array_equal(read(mask, mask_kind="white", mask_blur=0), sharp)
    soft = read(mask, mask_kind="white", mask_blur=4)
    row = soft[16].astype(int)
    assert (np.diff(row) >= 0).all()
    assert row[24] - row[23] < 40
    assert (row[0], row[47]) == (0, 255)
    # As a Gaussian of that deviation: 16 percent of it lie beyond one.
    assert abs(row[19] / 255 - 0.16) < 0.05
