"""Sizes on the way into a pipeline: what is drawn, what is looked at, and what it costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.cards import Size, SizeRule, Task
from shared.errors import UnsupportedSize
from shared.messages import Parameters
from tests import tiny
from worker.backends import Inputs
from worker.backends.calls import Call, Caller
from worker.backends.families import FAMILIES

pytestmark = pytest.mark.model
FAMILY = FAMILIES["Flux2KleinPipeline"]
SIDES = st.one_of(st.integers(8, 300), st.integers(8, 4096), st.integers(8, 16_383))
# Any shape, and seldom more than it takes: each of them is really made smaller.
SHAPES = SIDES.flatmap(lambda side: st.tuples(st.just(side), st.integers(8, max(8, min(16_383, 3_000_000 // side)))))


class Tokenizer:
    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=text.split())


PIPELINE = SimpleNamespace(vae_scale_factor=8, tokenizer=Tokenizer(), tokenizer_max_length=512)


def plain(height: int, width: int) -> Any:
    """A picture that takes no memory, however large."""
    return np.broadcast_to(np.uint8(9), (height, width, 3))


def call(task: Task, *given: tuple[int, int], width: int = 1024, height: int = 1024, **asked: Any) -> Call:
    """The call for pictures of (width, height)."""
    parameters = Parameters(prompt="a cat", width=width, height=height, **{"steps": 4, "guidance": 1.0} | asked)
    return Caller(FAMILY, None, PIPELINE).call(task, parameters, Inputs(tuple(plain(h, w) for w, h in given)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SHAPES)
@example((4096, 4096))
@example((16_383, 1024))
@example((8, 16_383))
@example((8, 8))
def test_whatever_is_to_be_looked_at_is_as_the_pipeline_takes_it(size: tuple[int, int]) -> None:
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    width, height = size
    made = call("edit", (width, height))
    [shown] = made.arguments["image"]
    Flux2ImageProcessor.check_image_input(shown)
    assert shown.width * shown.height <= 1024 * 1024, "the pipeline would make it smaller by itself"
    shape, kept = width / height, shown.width / shown.height
    if 1 / 8 <= shape <= 8:
        assert 0.97 < shape / kept < 1.03
    else:
        assert 7.3 < max(kept, 1 / kept) <= 8
    if min(width, height) >= 64 and width * height <= 1024 * 1024 and 1 / 8 <= shape <= 8:
        assert shown.size == (width, height)
    assert made.tokens.image_in == (shown.width // 16) * (shown.height // 16)


def test_several_pictures_are_looked_at_in_their_order() -> None:
    made = call("edit", (640, 480), (64, 64), (8, 8))
    assert [shown.size for shown in made.arguments["image"]] == [(640, 480), (64, 64), (64, 64)]
    assert made.tokens.image_in == 40 * 30 + 16 + 16
    assert (made.tokens.text, made.tokens.image_out) == (2, 64 * 64)
    assert not made.inpainting


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SHAPES, st.sampled_from(["inpaint", "variation"]))
@example((4096, 4096), "inpaint")
@example((16_383, 8), "inpaint")
def test_whatever_is_painted_over_is_drawn_at_a_size_that_the_pipeline_keeps(size: tuple[int, int], task: Task) -> None:
    width, height = size
    made = call(task, (width, height), width=width, height=height)
    assert made.inpainting
    assert made.size.width % 16 == made.size.height % 16 == 0
    assert 64 <= min(made.size.width, made.size.height) <= max(made.size.width, made.size.height) <= 2048
    assert made.size.width * made.size.height <= 1024 * 1024
    for name in ("image", "mask_image"):
        assert made.arguments[name].size == (made.size.width, made.size.height)
    assert (made.arguments["width"], made.arguments["height"]) == (made.size.width, made.size.height)
    assert made.tokens.image_in == made.tokens.image_out == made.size.width * made.size.height // 256


def test_beside_a_mask_a_second_picture_is_looked_at() -> None:
    made = call("inpaint", (500, 333), (4000, 3000), width=500, height=333)
    assert made.arguments["image"].size == (512, 336)
    assert made.arguments["image_reference"].size == (1182, 887)
    assert made.tokens.image_in == 32 * 21 + 73 * 55


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 100), st.floats(0.001, 1.0))
def test_the_steps_are_counted_as_the_pipeline_counts_them(steps: int, strength: float) -> None:
    from diffusers import Flux2KleinInpaintPipeline

    made = call("variation", (64, 64), width=64, height=64, steps=steps, strength=strength)
    scheduler = SimpleNamespace(timesteps=list(range(steps)), order=1)
    timesteps, count = Flux2KleinInpaintPipeline.get_timesteps(
        SimpleNamespace(scheduler=scheduler), steps, strength, ""
    )
    assert made.steps == len(timesteps) == count
    assert 1 <= made.steps <= steps
    assert made.arguments["strength"] == strength


def test_a_strength_that_is_not_said_is_the_familys() -> None:
    assert call("inpaint", (64, 64), width=64, height=64, steps=10).arguments["strength"] == FAMILY.strength
    assert call("inpaint", (64, 64), width=64, height=64, steps=10).steps == 8
    assert "strength" not in call("edit", (64, 64)).arguments


@pytest.mark.parametrize("task", ["edit", "variation"])
def test_a_model_of_few_sizes_sees_the_middle_of_a_picture_at_its_own(task: Task) -> None:
    said = tiny.manifest(multiples=(1, 3, 8))
    caller = Caller(FAMILY, said, PIPELINE)
    asked = Parameters(prompt="a cat", width=192, height=192, steps=4, guidance=1.0)
    made = caller.call(task, asked, Inputs((plain(333, 500),)))
    shown = made.arguments["image"]
    assert (shown[0] if task == "edit" else shown).size == (64, 64)
    assert made.size == Size(width=64, height=64)
    with pytest.raises(UnsupportedSize):
        caller.call(task, asked.model_copy(update={"width": 100}), Inputs((plain(333, 500),)))


RULES = {
    "klein": FAMILY.sizes,
    "painted": FAMILY.sizes.model_copy(update={"max_pixels": FAMILY.inpainting_pixels}),
    "stub": SizeRule(default=Size(width=512, height=512)),
    "listed": SizeRule(
        default=Size(width=64, height=64),
        allowed=tuple(Size(width=w, height=h) for w in (64, 128, 512) for h in (64, 128, 512)),
    ),
    "odd": SizeRule(default=Size(width=120, height=120), multiple=24, min_side=100, max_side=1000, max_pixels=300_000),
}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(RULES)), SIDES, SIDES)
def test_the_closest_size_fits_and_keeps_the_shape(name: str, width: int, height: int) -> None:
    rule, size = RULES[name], Size(width=width, height=height)
    made = rule.closest(size)
    assert rule.fits(made)
    if rule.fits(size):
        assert made == size
    if name == "listed":
        return
    # As far as a rule's own bounds let it: no side is off by more than its multiple and what its shape costs.
    longest = min(rule.max_side, rule.max_pixels // rule.min_side) / rule.min_side
    shape = width / height
    off = (made.width / made.height) / min(max(shape, 1 / longest), longest)
    assert max(off, 1 / off) <= (1 + rule.multiple / min(made.width, made.height)) ** 2
    if min(width, height) > rule.min_side and max(width, height) < rule.max_side and width * height < rule.max_pixels:
        assert abs(made.width - width) <= rule.multiple
        assert abs(made.height - height) <= rule.multiple


@pytest.mark.parametrize(
    ("size", "closest"),
    [
        ((1024, 1024), (1024, 1024)),
        ((500, 333), (512, 336)),
        ((8, 8), (64, 64)),
        ((1000, 40), (1600, 64)),
        ((40, 1000), (64, 1600)),
        ((16_383, 8), (2048, 64)),
        ((8, 16_383), (64, 2048)),
        ((4096, 4096), (2048, 2048)),
        ((4096, 2048), (2048, 1024)),
        ((6000, 4000), (2048, 1360)),
    ],
)
def test_the_closest_size_of_a_large_model(size: tuple[int, int], closest: tuple[int, int]) -> None:
    made = FAMILY.sizes.closest(Size(width=size[0], height=size[1]))
    assert (made.width, made.height) == closest
