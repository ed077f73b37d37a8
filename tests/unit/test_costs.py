"""The cost model: what it has seen it knows, what it has not it scales, and it forgets before it grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.costs import Costs, Work

SMALL, LARGE = Work(512 * 512, 4), Work(1024 * 1024, 4)


def test_nothing_known_is_a_second() -> None:
    assert Costs().seconds("m", SMALL) == 1.0
    assert Costs().step_seconds("m", SMALL) is None


def test_what_was_seen_is_known_and_what_was_not_is_scaled() -> None:
    costs = Costs()
    costs.learn("m", SMALL, 0.5)
    assert costs.seconds("m", SMALL) == 0.5
    assert costs.seconds("m", LARGE) == pytest.approx(2.0)
    assert costs.seconds("m", Work(512 * 512, 8)) == pytest.approx(1.0)
    assert costs.step_seconds("m", SMALL) == pytest.approx(0.125)
    assert costs.seconds("other", SMALL) == 1.0


def test_the_nearest_is_scaled_not_the_newest() -> None:
    costs = Costs()
    costs.learn("m", LARGE, 3.0)
    costs.learn("m", SMALL, 0.5)
    # Twice the small amount, half the large: the same distance; a little more is nearer to the large one.
    assert costs.seconds("m", Work(1024 * 1024, 3)) == pytest.approx(2.25)


def test_a_mean_follows_what_changes() -> None:
    costs = Costs()
    for _ in range(30):
        costs.learn("m", SMALL, 1.0)
    for _ in range(30):
        costs.learn("m", SMALL, 2.0)
    assert 1.95 < costs.seconds("m", SMALL) <= 2.0


def test_a_batch_is_a_signature_of_its_own() -> None:
    costs = Costs()
    costs.learn("m", SMALL, 1.0)
    costs.learn("m", Work(512 * 512, 4, batch=4), 1.6)
    assert costs.seconds("m", Work(512 * 512, 4, batch=4)) == 1.6
    assert costs.seconds("m", SMALL) == 1.0


def test_it_forgets_what_was_not_seen_for_longest() -> None:
    costs = Costs()
    for steps in range(1, 400):
        costs.learn("m", SMALL, 0.5)
        costs.learn("m", Work(64, steps), float(steps))
    assert len(costs._known["m"]) <= 256
    assert costs.seconds("m", SMALL) == 0.5, "what is seen again and again stays"
    assert costs.seconds("m", Work(64, 399)) == 399.0


@given(st.lists(st.tuples(st.integers(1, 2**24), st.integers(1, 1000), st.floats(0, 1e4)), max_size=20))
def test_an_estimate_is_always_a_time(seen: list[tuple[int, int, float]]) -> None:
    costs = Costs()
    for pixels, steps, seconds in seen:
        costs.learn("m", Work(pixels, steps), seconds)
    assert 0 < costs.seconds("m", SMALL) < float("inf")
