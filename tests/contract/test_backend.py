"""What every backend keeps to: the stub and a tiny random FLUX.2-klein, by one suite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shared.cards import ModelCard, Size
from shared.messages import Parameters, Run
from worker.backends import Backend, Inputs, Picture

STEPS = 3


class Nobody(Exception):
    """Stands for the engine's Stopped: a backend knows neither."""


def run(
    *seeds: int, prompt: str = "a cat", negative: str = "", width: int = 80, height: int = 64, steps: int = STEPS
) -> Run:
    asked = Parameters(prompt=prompt, negative_prompt=negative, width=width, height=height, steps=steps, guidance=3.0)
    return Run(job="j", attempt=1, model="tiny", task="generate", seeds=seeds, parameters=asked, epoch=0, digest="d")


def silent(step: int, total: int) -> None:
    pass


def unseen(preview: int, pixels: object) -> None:
    pass


def pixels(pictures: list[Picture]) -> list[bytes]:
    return [picture.pixels.tobytes() for picture in pictures if picture.pixels is not None]


def test_a_picture_has_the_size_that_was_asked_for(backend: Backend) -> None:
    (picture,) = backend.generate(run(1), Inputs(), silent, unseen)
    assert picture.seed == 1
    assert picture.pixels is not None
    assert picture.pixels.shape == (64, 80, 3)
    assert picture.pixels.dtype == np.uint8


def test_equal_requests_give_equal_pixels(backend: Backend) -> None:
    assert pixels(backend.generate(run(7), Inputs(), silent, unseen)) == pixels(
        backend.generate(run(7), Inputs(), silent, unseen)
    )


def test_a_seed_gives_the_same_picture_in_any_place_and_company(backend: Backend) -> None:
    pictures = backend.generate(run(5, 3), Inputs(), silent, unseen)
    assert [picture.seed for picture in pictures] == [5, 3]
    assert pixels(backend.generate(run(3, 5), Inputs(), silent, unseen)) == pixels(pictures)[::-1]
    assert pixels(backend.generate(run(3), Inputs(), silent, unseen)) == pixels(pictures)[1:]


@pytest.mark.parametrize(
    "other",
    [run(2), run(1, prompt="a dog"), run(1, negative="a dog"), run(1, steps=2)],
    ids=["seed", "prompt", "negative", "steps"],
)
def test_another_request_gives_another_picture(backend: Backend, other: Run) -> None:
    assert pixels(backend.generate(run(1), Inputs(), silent, unseen)) != pixels(
        backend.generate(other, Inputs(), silent, unseen)
    )


def test_the_greatest_seed_can_be_drawn(backend: Backend) -> None:
    assert len(backend.generate(run(2**63 - 1), Inputs(), silent, unseen)) == 1


def test_every_step_is_told_once_and_in_order(backend: Backend) -> None:
    told: list[tuple[int, int]] = []
    backend.generate(run(1, 2), Inputs(), lambda step, total: told.append((step, total)), unseen)
    assert told == [(step, 2 * STEPS) for step in range(1, 2 * STEPS + 1)]


@pytest.mark.parametrize("last", [1, STEPS, STEPS + 1])
def test_a_stop_passes_through_and_leaves_no_trace(backend: Backend, make: Callable[[], Backend], last: int) -> None:
    def stop(step: int, total: int) -> None:
        if step == last:
            raise Nobody

    with pytest.raises(Nobody):
        backend.generate(run(1, 2), Inputs(), stop, unseen)
    fresh = make()
    fresh.load()
    assert pixels(backend.generate(run(1), Inputs(), silent, unseen)) == pixels(
        fresh.generate(run(1), Inputs(), silent, unseen)
    )
    fresh.unload()


def test_the_card_holds_its_own_defaults(card: ModelCard) -> None:
    assert card.sizes.fits(card.sizes.default)
    assert not card.sizes.fits(Size(width=3, height=3))
    assert 1 <= card.steps <= card.max_steps
    assert 0 <= card.guidance <= card.max_guidance
    assert card.tasks == ("generate", "edit", "inpaint", "variation")
    assert card.max_images >= card.max_masked_images >= 1
    assert 0 < card.strength <= 1
    assert card.family
    assert card.revision


def test_the_same_model_has_the_same_card_again(card: ModelCard, make: Callable[[], Backend]) -> None:
    again = make()
    assert again.load() == card
    again.unload()


def test_unload_gives_everything_back_and_may_be_said_twice(make: Callable[[], Backend]) -> None:
    backend = make()
    backend.unload()
    backend.load()
    assert backend.memory_bytes() >= 0
    backend.unload()
    backend.unload()
    assert backend.memory_bytes() == 0


def test_pictures_made_together_are_the_pictures_made_alone(backend: Backend, card: ModelCard) -> None:
    if card.max_batch == 1:
        pytest.skip("this one makes one at a time")
    runs = [run(seed, prompt=prompt) for seed, prompt in ((3, "a cat"), (9, "two dogs and a longer prompt"), (5, "x"))]
    told: list[tuple[int, int]] = []
    together = backend.generate_together(runs, lambda step, total: told.append((step, total)))
    assert told == [(step, STEPS) for step in range(1, STEPS + 1)], "the steps are those of the one call"
    assert [picture.seed for picture in together] == [3, 9, 5]
    for each, picture in zip(runs, together, strict=True):
        [alone] = backend.generate(each, Inputs(), silent, unseen)
        assert picture.tokens == alone.tokens
        assert picture.pixels is not None
        assert alone.pixels is not None
        # A batch of another size rounds otherwise: a level at most.
        assert np.abs(picture.pixels.astype(int) - alone.pixels.astype(int)).max() <= 1


def test_a_negative_prompt_counts_for_each_of_those_made_together(backend: Backend, card: ModelCard) -> None:
    if card.max_batch == 1:
        pytest.skip("this one makes one at a time")
    runs = [run(3, negative=negative) for negative in ("dogs", "everything that is blue")]
    first, second = backend.generate_together(runs, silent)
    assert pixels([first]) != pixels([second])
    [alone] = backend.generate(runs[1], Inputs(), silent, unseen)
    assert second.pixels is not None
    assert alone.pixels is not None
    assert np.abs(second.pixels.astype(int) - alone.pixels.astype(int)).max() <= 1


def test_a_call_for_several_can_be_called_off(backend: Backend, card: ModelCard) -> None:
    def stop(step: int, total: int) -> None:
        raise Nobody

    if card.max_batch == 1:
        pytest.skip("this one makes one at a time")
    before = pixels(backend.generate(run(1), Inputs(), silent, unseen))
    with pytest.raises(Nobody):
        backend.generate_together([run(1), run(2)], stop)
    assert pixels(backend.generate(run(1), Inputs(), silent, unseen)) == before
