"""The scorer of drawn shapes: right pictures pass however blurred, wrong ones fail in the attribute that is wrong."""

import io
import itertools
import math
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests import scorer
from tests.scorer import COLOURS, POSITIONS, SHAPES, SIZES, Expectation, Score

CENTRES = {"top": 0.27, "bottom": 0.73, "left": 0.27, "right": 0.73}


def centre(position: str) -> tuple[float, float]:
    words = position.split()
    row = next((CENTRES[w] for w in words if w in ("top", "bottom")), 0.5)
    column = next((CENTRES[w] for w in words if w in ("left", "right")), 0.5)
    return column, row


def drawn(wanted: Expectation, *, seed: int = 0, blur: float = 0.8, noise: float = 6.0) -> Image.Image:
    """A picture as a good model draws it: 64 pixels, a little blurred, noisy and off its place."""
    rng = random.Random(seed)
    over = 8
    side = 64 * over
    image = Image.new("RGB", (side, side), COLOURS[wanted.background or "white"])
    draw = ImageDraw.Draw(image)
    x, y = (side * (c + rng.uniform(-0.015, 0.015)) for c in centre(wanted.position))
    r = side * SIZES[wanted.size or "medium"] / 2
    colour = COLOURS[wanted.colour]
    if wanted.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif wanted.shape == "square":
        draw.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=colour)
    else:
        radii = [1.15 * r] if wanted.shape == "triangle" else [1.15 * r, 0.47 * r]
        count = 3 if wanted.shape == "triangle" else 10
        turns = [2 * math.pi * k / count for k in range(count)]
        draw.polygon(
            [
                (x + radii[k % len(radii)] * math.sin(a), y - radii[k % len(radii)] * math.cos(a))
                for k, a in enumerate(turns)
            ],
            fill=colour,
        )
    pixels = np.asarray(image.reduce(over).filter(ImageFilter.GaussianBlur(blur)), dtype=np.float64)
    pixels = pixels + np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_right_picture_passes(shape: str) -> None:
    colours = itertools.cycle(itertools.permutations(COLOURS, 2))
    for seed, (position, size, blur) in enumerate(itertools.product(POSITIONS, SIZES, (0.3, 1.0))):
        colour, background = next(colours)
        wanted = Expectation(shape, colour, background, position, size)
        image = drawn(wanted, seed=seed, blur=blur)
        assert scorer.score(np.asarray(image), wanted) == Score(True, True, True, True), wanted
        assert scorer.look(image).size == size, wanted


def test_every_pair_of_colours_is_told_apart() -> None:
    for seed, (colour, background) in enumerate(itertools.permutations(COLOURS, 2)):
        wanted = Expectation(SHAPES[seed % 4], colour, background)
        assert scorer.score(drawn(wanted, seed=seed), wanted).all, wanted


RED_CIRCLE = Expectation("circle", "red", "blue", "top left", "medium")


@pytest.mark.parametrize(
    ("picture", "wrong"),
    [
        *[(Expectation(s, "red", "blue", "top left"), "shape") for s in SHAPES if s != "circle"],
        *[(Expectation("circle", c, "blue", "top left"), "colour") for c in COLOURS if c not in ("red", "blue")],
        *[(Expectation("circle", "red", c, "top left"), "background") for c in COLOURS if c not in ("red", "blue")],
        *[(Expectation("circle", "red", "blue", p), "position") for p in POSITIONS if p != "top left"],
    ],
)
def test_a_wrong_picture_fails_in_what_is_wrong_and_only_there(picture: Expectation, wrong: str) -> None:
    found = scorer.score(drawn(picture, seed=3), RED_CIRCLE)
    assert {name for name in ("shape", "colour", "background", "position") if not getattr(found, name)} == {wrong}


@pytest.mark.parametrize(("shape", "other"), list(itertools.permutations(SHAPES, 2)))
@pytest.mark.parametrize("size", list(SIZES))
def test_no_shape_passes_for_another(shape: str, other: str, size: str) -> None:
    wanted = Expectation(other, "green", "white")
    for seed in range(4):
        image = drawn(Expectation(shape, "green", "white", "center", size), seed=seed, blur=1.0)
        assert not scorer.score(image, wanted).shape


@pytest.mark.parametrize("times", [1, 2, 8, 16])
def test_an_enlarged_png_is_judged_like_the_native_picture(times: int) -> None:
    wanted = Expectation("star", "yellow", "black", "bottom right", "small")
    image = drawn(wanted).resize((64 * times, 64 * times), Image.Resampling.NEAREST)
    assert scorer.score(png(image), wanted).all


def test_a_picture_without_a_shape_fails() -> None:
    found = scorer.score(Image.new("RGB", (64, 64), COLOURS["blue"]), RED_CIRCLE)
    assert found == Score(shape=False, colour=False, background=True, position=False)


def test_noise_fails() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not scorer.score(pixels, RED_CIRCLE).all


def test_a_size_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="96x96"):
        scorer.score(Image.new("RGB", (96, 96)), RED_CIRCLE)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a red circle on a blue background", Expectation("circle", "red", "blue")),
        (
            "a small yellow star in the top left on a black background",
            Expectation("star", "yellow", "black", "top left", "small"),
        ),
        ("green triangle, white background", Expectation("triangle", "green", "white")),
        (
            "A LARGE blue square at the bottom right of a yellow background",
            Expectation("square", "blue", "yellow", "bottom right", "large"),
        ),
        ("on a grey backdrop, draw a pink star in the centre.", Expectation("star", "pink", "gray")),
        ("red circle", Expectation("circle", "red", None)),
        (
            "a big black square in the upper-right corner, the background is orange",
            Expectation("square", "black", "orange", "top right", "large"),
        ),
    ],
)
def test_simple_prompts_are_understood(prompt: str, wanted: Expectation) -> None:
    assert scorer.parse(prompt) == wanted


def test_a_prompt_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="sunset"):
        scorer.parse("a red sunset")


def test_an_unsaid_background_may_be_any_but_the_colour() -> None:
    wanted = Expectation("circle", "red", None)
    assert scorer.score(drawn(Expectation("circle", "red", "green")), wanted).background


def test_held_out_prompts_cover_the_held_out_triples_and_parse_to_what_they_expect() -> None:
    cases = scorer.held_out_prompts(200, seed=4)
    assert cases == scorer.held_out_prompts(200, seed=4)
    assert cases != scorer.held_out_prompts(200, seed=5)
    triples = {(w.shape, w.colour, w.background) for _, w in cases}
    assert triples == set(scorer.held_out_triples())
    assert len(triples) == 36  # a tenth of 4 shapes x 10 colours x 9 backgrounds
    assert {w.shape for _, w in cases} == set(SHAPES)
    for prompt, wanted in cases:
        assert scorer.parse(prompt) == wanted, prompt
