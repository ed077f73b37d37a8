"""The queue: first come first served, a fair share between owners, priority, and nothing waits for ever."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backlog import PRIORITY_SECONDS, Backlog
from gateway.jobs.job import Job
from shared.messages import Parameters

_NUMBERS = count()
_ASKED = Parameters(prompt="x", width=64, height=64, steps=4, guidance=1.0)


def job(owner: str = "", *, cost: float = 1.0, priority: int = 0, model: str = "m") -> Job:
    number = next(_NUMBERS)
    made = Job(f"{owner}{number}", model, "generate", _ASKED, (1,), 1e9, float(number), owner=owner, priority=priority)
    made.cost_seconds = cost
    return made


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(["m", "n"])


def served(backlog: Backlog, most: int = 1000) -> list[Job]:
    """The jobs in the order in which they start."""
    order = []
    while len(order) < most and (queue := dict(backlog)["m"]):
        order.append(queue[0])
        backlog.start(queue[0])
    return order


def test_first_come_first_served(backlog: Backlog) -> None:
    jobs = [job(cost=cost) for cost in (3.0, 1.0, 2.0)]
    for each in jobs:
        backlog.join(each)
    assert served(backlog) == jobs


def test_who_comes_late_does_not_wait_behind_a_flood(backlog: Backlog) -> None:
    flood = [job("flood") for _ in range(100)]
    for each in flood:
        backlog.join(each)
    assert served(backlog, 20) == flood[:20]
    late = [job("late") for _ in range(3)]
    for each in late:
        backlog.join(each)
    order = served(backlog)
    assert [order.index(each) for each in late] == [0, 2, 4] or [order.index(each) for each in late] == [1, 3, 5]


def test_a_share_is_of_the_devices_time_not_of_the_number(backlog: Backlog) -> None:
    for _ in range(40):
        backlog.join(job("heavy", cost=4.0))
        backlog.join(job("light", cost=1.0))
    spent = {"heavy": 0.0, "light": 0.0}
    for each in served(backlog, 40):
        spent[each.owner] += each.cost_seconds
    assert abs(spent["heavy"] - spent["light"]) <= 4.0


def test_quiet_times_are_not_held_against_anybody(backlog: Backlog) -> None:
    for _ in range(50):
        backlog.join(job("only"))
        served(backlog)
    first, second = job("only"), job("other")
    backlog.join(first)
    backlog.join(second)
    assert served(backlog) == [first, second]


def test_what_is_more_important_goes_first_and_not_for_ever(backlog: Backlog) -> None:
    low = job("a", priority=-1)
    backlog.join(low)
    passed = 0
    backlog.join(job("b", priority=1))
    while served(backlog, 1) != [low] and passed < 1000:
        backlog.join(job("b", priority=1))
        passed += 1
    assert 2 * PRIORITY_SECONDS - 2 <= passed <= 2 * PRIORITY_SECONDS + 2


def test_a_job_that_lost_its_worker_comes_before_all_that_came_after_it(backlog: Backlog) -> None:
    jobs = [job() for _ in range(4)]
    for each in jobs:
        backlog.join(each)
    served(backlog, 2)
    backlog.add(jobs[1])
    assert served(backlog) == [jobs[1], jobs[2], jobs[3]]


def test_what_waits_is_known_by_number_and_seconds(backlog: Backlog) -> None:
    jobs = [job("a", cost=2.0), job("b", cost=3.0), job("a", cost=5.0)]
    for each in jobs:
        backlog.join(each)
    backlog.join(job("a", model="n", cost=7.0))
    assert (backlog.waiting("m"), backlog.waiting_of("a"), backlog.seconds("m")) == (3, 3, 10.0)
    assert backlog.ahead_of(jobs[2]) == (2, 5.0)
    backlog.remove(jobs[0])
    assert (backlog.waiting_of("a"), backlog.seconds("m")) == (2, 8.0)
    assert backlog.keep(["m"])[0].model == "n"
    assert "n" not in backlog


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 50), st.integers(-10, 10)), max_size=60))
def test_everything_that_waits_is_served_once(asked: list[tuple[str, float, int]]) -> None:
    backlog = Backlog(["m"])
    jobs = [job(owner, cost=cost, priority=priority) for owner, cost, priority in asked]
    for each in jobs:
        backlog.join(each)
    assert sorted(each.id for each in served(backlog)) == sorted(each.id for each in jobs)
    assert not backlog._waiting
    assert not backlog._clocks
