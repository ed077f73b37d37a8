"""What a caller may ask for at once and in a minute, by a clock that only moves when it is told to."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gateway.auth import Caller
from gateway.keys import Role
from gateway.quota import Quota
from gateway.rates import Rates
from shared.errors import RateLimited
from tests.unit.clock import Clock

FREE = Caller("key_1", "free", Role.INFERENCE, "key_1")
TIGHT = Caller("key_2", "tight", Role.INFERENCE, "key_2", max_requests=1, images_per_minute=4)
NOBODY = Caller(None, "anonymous", Role.INFERENCE, "192.0.2.1")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def made(clock: Clock, *, max_requests: int | None = None, images_per_minute: int | None = None) -> Quota:
    return Quota(Rates(clock.time), max_requests=max_requests, images_per_minute=images_per_minute)


def ask(quota: Quota, caller: Caller, images: int = 1) -> float | None:
    """Asks and is done at once: the seconds to wait where it is refused."""
    try:
        with quota.hold(caller, images):
            return None
    except RateLimited as error:
        return error.retry_after_seconds


def test_without_bounds_there_are_none(clock: Clock) -> None:
    quota = made(clock)
    with ExitStack() as held:
        for _ in range(100):
            held.enter_context(quota.hold(FREE, images=10))
        assert quota._in_flight[FREE.account] == 100
    assert not quota._in_flight, "and nothing is kept of those that are over"


def test_so_many_requests_are_in_flight_and_no_more(clock: Clock) -> None:
    quota = made(clock, max_requests=2)
    with quota.hold(FREE, images=1):
        with quota.hold(FREE, images=1):
            with pytest.raises(RateLimited, match="2 requests at a time"):
                quota.hold(FREE, images=1).__enter__()
            # Others have their own.
            assert ask(quota, NOBODY) is None
        assert ask(quota, FREE) is None


def test_a_request_that_fails_is_in_flight_no_more(clock: Clock) -> None:
    quota = made(clock, max_requests=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), quota.hold(FREE, images=1):
            _ = 1 / 0


def test_a_keys_own_bounds_go_over_the_settings(clock: Clock) -> None:
    quota = made(clock, max_requests=5, images_per_minute=1000)
    with quota.hold(TIGHT, images=1), pytest.raises(RateLimited, match="1 requests at a time"):
        quota.hold(TIGHT, images=1).__enter__()
    assert ask(quota, TIGHT, images=3) is None
    assert ask(quota, TIGHT) is not None


def test_images_are_counted_over_any_minute(clock: Clock) -> None:
    quota = made(clock, images_per_minute=4)
    assert ask(quota, FREE, images=2) is None
    clock.now += 50
    assert ask(quota, FREE, images=2) is None
    # The wait is until the first two are a minute old.
    assert ask(quota, FREE) == pytest.approx(10)
    assert ask(quota, NOBODY, images=4) is None
    clock.now += 10.5
    assert ask(quota, FREE, images=3) == pytest.approx(49.5)
    assert ask(quota, FREE, images=2) is None
    assert ask(quota, FREE) == pytest.approx(49.5)


def test_what_is_refused_is_not_counted(clock: Clock) -> None:
    quota = made(clock, images_per_minute=4)
    assert ask(quota, FREE, images=3) is None
    for _ in range(100):
        assert ask(quota, FREE, images=2) is not None
    assert ask(quota, FREE, images=1) is None


def test_a_request_refused_for_others_in_flight_counts_no_images(clock: Clock) -> None:
    quota = made(clock, max_requests=1, images_per_minute=2)
    with quota.hold(FREE, images=1):
        for _ in range(5):
            with pytest.raises(RateLimited, match="at a time"):
                quota.hold(FREE, images=1).__enter__()
    assert ask(quota, FREE) is None


def test_what_will_never_fit_names_no_time_to_come_back_at(clock: Clock) -> None:
    with pytest.raises(RateLimited, match="5 images, and 4 images per minute") as refused:
        made(clock, images_per_minute=4).hold(FREE, images=5).__enter__()
    assert refused.value.retry_after_seconds is None


def test_addresses_that_never_come_back_are_forgotten(clock: Clock) -> None:
    rates = Rates(clock.time)
    for minute in range(3):
        for number in range(1500):
            assert rates.take(f"{minute} {number}", 10) is None
            assert rates.strike(f"{minute} {number}", 10) is None
        clock.now += 61
    assert len(rates._storage.events) < 4000
    assert len(rates._taken) < 4000
    for _ in range(9):
        assert rates.take("2 0", 10) is None
