"""Runs that the engine makes in one call: begun together, each with its own end, and nobody is waited for for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.errors import OutOfMemory
from shared.messages import Done, Progress
from tests.unit.stage import Stage, fail, finish, staged, step


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    yield from staged(monkeypatch)


def sent(stage: Stage, *jobs: str, size: int = 0) -> None:
    for job in jobs:
        stage.run(job, batch="call", batch_size=size or len(jobs))


def test_they_are_made_together_and_each_is_done(stage: Stage) -> None:
    sent(stage, "a", "b", "c")
    stage.puppet.order(step(1))
    assert stage.puppet.together == ["a", "b", "c"]
    assert stage.engine.steps == 1, "a step of the call is one step of the device"
    stage.puppet.orders.put(finish)
    for job in "abc":
        done = stage.ended(job)
        assert isinstance(done, Done)
        assert done.timings.batch == 3
    assert {said.job for said in stage.of(Progress) if said.step == 0} == {"a", "b", "c"}


def test_a_call_begins_when_all_are_there_and_leaves_others_their_turn(stage: Stage) -> None:
    stage.begin("before")
    sent(stage, "a", size=2)
    stage.run("other")
    sent(stage, "b", size=2)
    stage.puppet.orders.put(finish)
    stage.puppet.order(step(1))
    assert stage.puppet.together == ["a", "b"]
    stage.puppet.orders.put(finish)
    stage.puppet.orders.put(finish)
    assert isinstance(stage.ended("other"), Done)
    done = stage.of(Done)
    assert [said.job for said in done].index("other") == 3


def test_who_does_not_come_is_not_waited_for_for_ever(stage: Stage) -> None:
    sent(stage, "a", "b", size=3)
    stage.puppet.order(step(1))
    assert stage.puppet.together == ["a", "b"]
    stage.puppet.orders.put(finish)
    assert isinstance(stage.ended("b"), Done)


def test_one_that_is_called_off_does_not_stop_the_others(stage: Stage) -> None:
    sent(stage, "a", "b")
    stage.puppet.order(step(1))
    stage.engine.cancel("a", 1)
    stage.puppet.order(step(2))
    stage.puppet.orders.put(finish)
    assert stage.code("a") == "cancelled"
    assert isinstance(stage.ended("b"), Done)


def test_nobody_waits_so_it_stops(stage: Stage) -> None:
    sent(stage, "a", "b")
    stage.puppet.order(step(1))
    for job in "ab":
        stage.engine.cancel(job, 1)
    stage.puppet.order(step(2))
    assert [stage.code(job) for job in "ab"] == ["cancelled", "cancelled"]


def test_what_fails_fails_for_all_and_they_are_told_why(stage: Stage) -> None:
    sent(stage, "a", "b")
    stage.puppet.order(fail(OutOfMemory("together")))
    assert [stage.code(job) for job in "ab"] == ["out_of_memory", "out_of_memory"]
