"""What every backend keeps to when it works from pictures, and when it shows what they will be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.cards import Task
from shared.messages import Parameters, Run
from worker.backends import Backend, Inputs

Pixels = NDArray[np.uint8]
STEPS = 2


class Nobody(Exception):
    """Stands for the engine's Stopped: a backend knows neither."""


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def left_half(width: int, height: int) -> Pixels:
    """A mask that leaves the right half as it is."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def run(task: Task, *seeds: int, width: int = 80, height: int = 64, previews: int = 0, **asked: Any) -> Run:
    """With the default strength of a card, unless it is said, as the gateway fills it in."""
    strength = {"strength": 0.8} if task in ("inpaint", "variation") else {}
    filled = {"prompt": "a cat", "steps": STEPS, "guidance": 1.0} | strength | asked
    return Run(
        job="j",
        attempt=1,
        model="tiny",
        task=task,
        seeds=seeds or (1,),
        parameters=Parameters(width=width, height=height, **filled),
        epoch=0,
        digest="d",
        previews=previews,
    )


def given(task: Task, width: int = 80, height: int = 64, seed: int = 0) -> Inputs:
    """What a task works from."""
    if task == "generate":
        return Inputs()
    return Inputs((noise(width, height, seed),), left_half(width, height) if task == "inpaint" else None)


def drawn(backend: Backend, asked: Run, inputs: Inputs) -> list[Pixels]:
    made = []
    for picture in backend.generate(asked, inputs, lambda step, total: None, lambda number, pixels: None):
        assert picture.pixels is not None
        made.append(picture.pixels)
    return made


TASKS: tuple[Task, ...] = ("edit", "inpaint", "variation")
EVERY: tuple[Task, ...] = ("generate", *TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_is_of_the_size_asked_for_and_comes_from_what_was_given(backend: Backend, task: Task) -> None:
    [picture] = drawn(backend, run(task), given(task))
    assert (picture.shape, picture.dtype) == ((64, 80, 3), np.uint8)
    assert np.array_equal(drawn(backend, run(task), given(task))[0], picture)
    assert not np.array_equal(drawn(backend, run(task), given(task, seed=9))[0], picture), "it does not look at it"
    assert not np.array_equal(drawn(backend, run(task, prompt="a dog"), given(task))[0], picture)
    assert not np.array_equal(drawn(backend, run(task, 2), given(task))[0], picture)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_picture_in_any_company(backend: Backend, task: Task) -> None:
    pictures = drawn(backend, run(task, 5, 3), given(task))
    assert np.array_equal(drawn(backend, run(task, 3), given(task))[0], pictures[1])
    assert np.array_equal(drawn(backend, run(task, 5), given(task))[0], pictures[0])


@pytest.mark.parametrize("size", [(80, 64), (500, 333), (8, 8), (1000, 40), (37, 501)], ids=str)
def test_outside_of_a_mask_every_pixel_stays_at_any_size(backend: Backend, size: tuple[int, int]) -> None:
    inputs = given("inpaint", *size)
    assert inputs.mask is not None
    [picture] = drawn(backend, run("inpaint", width=size[0], height=size[1], steps=1), inputs)
    assert picture.shape == (size[1], size[0], 3)
    assert np.array_equal(picture[inputs.mask == 0], inputs.images[0][inputs.mask == 0])
    assert not np.array_equal(picture[inputs.mask == 255], inputs.images[0][inputs.mask == 255])


def test_a_mask_says_how_much(backend: Backend) -> None:
    ground, nothing = noise(80, 64), np.zeros((64, 80), np.uint8)
    asked = run("inpaint")
    assert np.array_equal(drawn(backend, asked, Inputs((ground,), nothing))[0], ground)
    [all_of_it] = drawn(backend, asked, Inputs((ground,), nothing + np.uint8(255)))
    assert np.mean(all_of_it == ground) < 0.1
    [soft] = drawn(backend, asked, Inputs((ground,), nothing + np.uint8(128)))
    between = (np.minimum(ground, all_of_it) <= soft) & (soft <= np.maximum(ground, all_of_it))
    assert between.all()


def test_a_mask_of_one_pixel_paints_one_pixel(backend: Backend) -> None:
    mask = np.zeros((64, 80), np.uint8)
    mask[20, 30] = 255
    ground = noise(80, 64)
    [picture] = drawn(backend, run("inpaint"), Inputs((ground,), mask))
    changed = (picture != ground).any(axis=2)
    assert not changed[mask == 0].any()


def test_several_pictures_are_looked_at_in_their_order(backend: Backend) -> None:
    one, two, three = noise(80, 64), noise(64, 96, 1), noise(8, 8, 2)
    pictures = [
        drawn(backend, run("edit"), Inputs(images))[0].tobytes()
        for images in ((one,), (one, two), (two, one), (one, two, three))
    ]
    assert len(set(pictures)) == 4


def test_beside_a_mask_another_picture_is_looked_at(backend: Backend) -> None:
    ground, mask = noise(80, 64), left_half(80, 64)
    alone, beside = (
        drawn(backend, run("inpaint"), Inputs(images, mask))[0] for images in ((ground,), (ground, noise(64, 64, 1)))
    )
    assert not np.array_equal(alone, beside)
    assert np.array_equal(beside[:, 40:], ground[:, 40:])


@pytest.mark.parametrize("size", [(8, 8), (1000, 40), (16, 600), (1300, 900)], ids=str)
def test_an_edit_takes_a_picture_of_any_size(backend: Backend, size: tuple[int, int]) -> None:
    [picture] = drawn(backend, run("edit", steps=1), given("edit", *size))
    assert picture.shape == (64, 80, 3)


@pytest.mark.parametrize("task", ["inpaint", "variation"])
@pytest.mark.parametrize(("steps", "strength"), [(1, 0.01), (1, 1.0), (3, 0.01), (3, 0.5), (3, 1.0), (100, 0.01)])
def test_any_strength_makes_at_least_one_step(backend: Backend, task: Task, steps: int, strength: float) -> None:
    told: list[tuple[int, int]] = []
    asked = run(task, steps=steps, strength=strength)
    pictures = backend.generate(
        asked, given(task), lambda step, total: told.append((step, total)), lambda number, pixels: None
    )
    assert len(pictures) == 1
    total = told[-1][1]
    assert told == [(step, total) for step in range(1, total + 1)]
    assert 1 <= total <= steps


@pytest.mark.parametrize("task", EVERY)
def test_what_is_read_and_written_is_counted(backend: Backend, task: Task) -> None:
    [picture] = backend.generate(run(task), given(task), lambda step, total: None, lambda number, pixels: None)
    assert picture.tokens.text >= 2
    assert picture.tokens.image_out == 5 * 4
    assert picture.tokens.image_in == (0 if task == "generate" else 5 * 4)


# Previews

NUMBERS = [
    # steps, previews, and after which step which of them comes
    (1, 3, []),
    (2, 1, [(1, 0)]),
    (2, 3, [(1, 0)]),
    (3, 2, [(1, 0), (2, 1)]),
    (4, 3, [(1, 0), (2, 1), (3, 2)]),
    (6, 1, [(3, 0)]),
    (6, 2, [(2, 0), (4, 1)]),
    (6, 0, []),
]


@pytest.mark.parametrize(("steps", "previews", "due"), NUMBERS)
def test_previews_come_when_they_are_due(
    backend: Backend, steps: int, previews: int, due: list[tuple[int, int]]
) -> None:
    seen: list[tuple[int, int]] = []
    now = 0

    def stepped(step: int, total: int) -> None:
        nonlocal now
        now = step

    def shown(number: int, pixels: Pixels) -> None:
        seen.append((now, number))
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
        assert pixels.shape[0] <= 64
        assert pixels.shape[1] <= 80

    backend.generate(run("generate", 1, 2, steps=steps, previews=previews), Inputs(), stepped, shown)
    assert seen == [*due, *((steps + step, previews + number) for step, number in due)]


@pytest.mark.parametrize("task", EVERY)
def test_showing_a_picture_does_not_change_it(backend: Backend, task: Task) -> None:
    shown: list[int] = []
    plain = drawn(backend, run(task, 1, 2, steps=4), given(task))
    watched = backend.generate(
        run(task, 1, 2, steps=4, previews=2),
        given(task),
        lambda step, total: None,
        lambda number, pixels: shown.append(number),
    )
    assert shown == [0, 1, 2, 3]
    for before, after in zip(plain, watched, strict=True):
        assert after.pixels is not None
        assert np.array_equal(after.pixels, before)


# Nothing is left over

# Each with steps of its own: what two pipelines share has to be set anew by each.
ASKED = {task: run(task, 7, steps=2 + place, guidance=3.0) for place, task in enumerate(EVERY)}


@pytest.fixture(scope="module")
def alone(make: Callable[[], Backend]) -> dict[Task, Pixels]:
    """Each task's picture as the first that a new pipeline makes."""
    pictures: dict[Task, Pixels] = {}
    for task in EVERY:
        fresh = make()
        fresh.load()
        [pictures[task]] = drawn(fresh, ASKED[task], given(task))
        fresh.unload()
    return pictures


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("last", [1, 2])
def test_a_stop_leaves_no_trace_in_any_task(backend: Backend, alone: dict[Task, Pixels], task: Task, last: int) -> None:
    def stop(step: int, total: int) -> None:
        if step == last:
            raise Nobody

    for each in (task, "generate"):
        with pytest.raises(Nobody):
            backend.generate(run(task, previews=1), given(task), stop, lambda number, pixels: None)
        assert np.array_equal(drawn(backend, ASKED[each], given(each))[0], alone[each]), each


def test_a_task_leaves_nothing_for_the_next(backend: Backend, alone: dict[Task, Pixels]) -> None:
    """Each after each, itself too."""
    order = "gvvivevgiieigeegg"
    assert len(set(pairwise(order))) == len(EVERY) ** 2
    for letter in order:
        [task] = [task for task in EVERY if task.startswith(letter)]
        assert np.array_equal(drawn(backend, ASKED[task], given(task))[0], alone[task]), task
