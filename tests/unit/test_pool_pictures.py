"""Pictures in the pool: those to work from, previews and results, from workers that are right, late, dead or lying."""

from __future__ import annotations

import struct

import pytest

from gateway.jobs.job import Job, JobState
from shared import messages as m
from shared.sources import wanted
from tests.pictures import hollow
from tests.unit.world import PNG, Puppet, World


@pytest.fixture
def world() -> World:
    return World()


def begun(world: World, **asked: int) -> tuple[Job, Puppet, Puppet, m.Run]:
    """A job that one of two workers has begun: the job, who has it, the other one, the run."""
    a, b = world.ready("a"), world.ready("b")
    job = world.submit(**{"previews": 2} | asked)  # type: ignore[arg-type]
    holder, other = (a, b) if a.runs() else (b, a)
    [run] = holder.runs()
    world.start(holder, run)
    return job, holder, other, run


def test_previews_are_asked_for_and_shown_in_their_order(world: World) -> None:
    job, holder, _, run = begun(world)
    assert run.previews == 2
    world.show(holder, run, 0)
    world.show(holder, run, 1)
    world.done(holder, run)
    assert world.shown == [(job.id, 1, 0), (job.id, 1, 1)]
    assert world.result(job).worker == holder.name


def test_a_preview_says_that_the_device_has_begun(world: World) -> None:
    a = world.ready("a")
    job = world.submit(previews=1)
    world.show(a, a.runs()[0], 0)
    assert job.started
    world.die(a)
    assert job.crashes == 1


def test_what_a_lost_attempt_still_shows_is_not_shown(world: World) -> None:
    job, holder, other, run = begun(world)
    world.hello(holder)
    # In its new session, which it does not run in any more.
    world.show(holder, run, 1)
    assert world.shown == []
    assert "stale_result" in world.notes
    again = other.runs()[-1]
    assert (again.job, again.attempt) == (job.id, 2)
    world.show(other, again, 0)
    assert world.shown == [(job.id, 2, 0)]


def test_nothing_is_shown_to_who_has_left(world: World) -> None:
    job, holder, _, run = begun(world)
    world.do(world.pool.cancel(job.id, world.now))
    world.show(holder, run, 0)
    assert world.shown == []
    assert not world.killed


JPEG = hollow("jpeg", 64, 64)
BAD = {
    "none at all": (),
    "two": (PNG, PNG),
    "of another format": (JPEG,),
    "too wide": (hollow("png", 65, 64),),
    "too high": (hollow("png", 64, 65),),
    "of 16k by 16k": (hollow("png", 16_384, 16_384),),
    "HTML": (b"<html>",),
    "nothing in it": (b"",),
    "a magic alone": (PNG[:8],),
    "without a size": (PNG[:20],),
    "lying on its side": (
        PNG + struct.pack(">I", 26) + b"eXIf" + b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\3\0\0\0\1\0\6\0\0",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_worker_whose_preview_is_none_is_replaced_and_its_work_is_done_again(world: World, what: str) -> None:
    job, holder, other, run = begun(world)
    progress = m.Progress(job=run.job, attempt=run.attempt, step=1, total=4, preview=0)
    world.say(holder, progress, BAD[what])
    assert world.killed == [holder.name]
    assert world.shown == []
    again = other.runs()[-1]
    assert (again.job, again.attempt, again.seeds) == (job.id, 2, run.seeds)
    world.done(other, again)
    assert world.result(job).worker == other.name


@pytest.mark.parametrize("number", [-1, 2, 10**9])
def test_a_preview_that_nobody_asked_for_is_not_believed(world: World, number: int) -> None:
    _, holder, _, run = begun(world)
    world.show(holder, run, number)
    assert (world.killed, world.shown) == ([holder.name], [])


def test_a_preview_of_a_job_without_any_is_not_believed(world: World) -> None:
    _, holder, _, run = begun(world, previews=0)
    world.show(holder, run, 0)
    assert (world.killed, world.shown) == ([holder.name], [])


def test_a_picture_without_a_number_is_not_believed(world: World) -> None:
    _, holder, _, run = begun(world)
    world.say(holder, m.Progress(job=run.job, attempt=run.attempt, step=1, total=4), (PNG,))
    assert (world.killed, world.shown) == ([holder.name], [])


@pytest.mark.parametrize("what", [what for what, images in BAD.items() if len(images) == 1])
def test_a_worker_whose_picture_is_not_what_it_says_is_replaced(world: World, what: str) -> None:
    """It says the right size, format and seed: the bytes are looked at."""
    job, holder, other, run = begun(world)
    [image] = BAD[what]
    world.done(holder, run, image)
    assert world.killed == [holder.name]
    assert "bad_result" in world.notes
    assert job.state is JobState.RUNNING
    world.done(other, other.runs()[-1])
    assert world.result(job).worker == other.name
    assert job.crashes == 1


def test_what_a_job_works_from_comes_with_each_attempt(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    inputs = (b"one", memoryview(b"two"), b"mask")
    job = world.submit(inputs=inputs)
    holder, other = (a, b) if a.runs() else (b, a)
    assert holder.given[job.id, 1] == inputs
    world.start(holder, holder.runs()[0])
    world.die(holder)
    assert other.given[job.id, 2] == inputs
    world.start(other, other.runs()[0])
    world.die(other)
    third = world.ready("c")
    assert third.given[job.id, 3] == inputs


def test_what_is_handed_ahead_and_taken_back_brings_its_pictures_along(world: World) -> None:
    a = world.ready("a")
    world.submit()
    job = world.submit(inputs=(b"one",))
    assert a.given[job.id, 1] == (b"one",)
    b = world.ready("b")
    assert b.given[job.id, 2] == (b"one",)


# Who goes first


def served(world: World, worker: Puppet) -> list[str]:
    """The order in which one worker does all there is."""
    done: list[str] = []
    while (runs := [run for run in worker.runs() if run.job not in world.outcomes]) and len(done) < 99:
        world.start(worker, runs[0])
        world.done(worker, runs[0])
        done.append(runs[0].job)
    return done


def test_the_higher_priority_goes_first_and_among_equals_the_older(world: World) -> None:
    a = world.ready("a")
    handed = [world.submit().id for _ in range(2)]
    jobs = [(priority, world.submit(priority=priority).id) for priority in (0, -10, 5, 0, 10, 5, -10)]
    expected = [job for _, job in sorted(jobs, key=lambda pair: -pair[0])]
    assert served(world, a) == [*handed, *expected]


def test_a_job_that_lost_its_worker_goes_before_its_equals_and_behind_its_betters(world: World) -> None:
    a = world.ready("a")
    first, second = world.submit(), world.submit()
    behind, better = world.submit(), world.submit(priority=1)
    world.start(a, a.runs()[0])
    world.die(a)
    b = world.ready("b")
    assert served(world, b) == [better.id, first.id, second.id, behind.id]


def test_priority_counts_between_models_too() -> None:
    world = World(models=(wanted("stub"), wanted("stub", model_id="other")))
    a = world.ready("a")
    handed = [world.submit().id for _ in range(2)]
    late, low = world.submit("stub", priority=-1), world.submit("stub", priority=-2)
    early, high = world.submit("other"), world.submit("other", priority=7)
    assert served(world, a) == [*handed, high.id, early.id, late.id, low.id]
