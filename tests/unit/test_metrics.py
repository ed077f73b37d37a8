"""What the pool notes becomes figures: retries and work for nobody, by why, and how long a device shows no step."""

from __future__ import annotations

import pytest

from gateway.actions import Note
from gateway.jobs.job import Job, Result
from gateway.limits import Limits
from gateway.metrics import Metrics
from shared import messages as m
from shared.errors import Poison
from tests.unit.world import MODEL, PNG, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics([MODEL.id])


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, f"there is no {name}{labels}"
    return found


def count(metrics: Metrics, world: World) -> None:
    """Count all that the pool has noted since the last time, as of now."""
    for note in world.noted:
        metrics.noted(note, world.now)
    world.noted.clear()


def test_a_job_whose_worker_died_is_a_retry_and_its_seconds_are_lost(world: World, metrics: Metrics) -> None:
    a = world.ready("a")
    world.submit()
    world.start(a, a.runs()[0])
    world.now += 3
    world.die(a)
    count(metrics, world)
    assert value(metrics, "replicast_job_retries_total", model="stub", reason="ended") == 1
    assert value(metrics, "replicast_wasted_work_seconds_total", model="stub", reason="lost") == pytest.approx(3)
    assert value(metrics, "replicast_wasted_work_seconds_total", model="stub", reason="cancelled") == 0


def test_what_had_not_begun_is_a_retry_and_nothing_is_lost(world: World, metrics: Metrics) -> None:
    a = world.ready("a")
    world.submit()
    world.now += 3
    world.say(a, m.Bye(reason="drained"))
    count(metrics, world)
    assert value(metrics, "replicast_job_retries_total", model="stub", reason="left") == 1
    assert value(metrics, "replicast_wasted_work_seconds_total", model="stub", reason="lost") == 0


def test_a_job_that_a_worker_would_not_have_is_a_retry(world: World, metrics: Metrics) -> None:
    a = world.ready("a")
    job = world.submit()
    world.say(a, m.Failed(job=job.id, attempt=1, problem=m.Problem(code="behind", message="")))
    count(metrics, world)
    assert value(metrics, "replicast_job_retries_total", model="stub", reason="behind") == 1


@pytest.mark.parametrize("end", ["done", "failed", "died"])
def test_work_for_nobody_counts_until_the_device_is_free(world: World, metrics: Metrics, end: str) -> None:
    a = world.ready("a")
    job = world.submit()
    [run] = a.runs()
    world.start(a, run)
    world.now += 2
    world.do(world.pool.cancel(job.id, world.now))
    world.now += 1
    match end:
        case "done":
            world.done(a, run)
        case "failed":
            world.say(a, m.Failed(job=job.id, attempt=1, problem=m.Problem(code="cancelled", message="")))
        case _:
            world.die(a)
    count(metrics, world)
    assert value(metrics, "replicast_wasted_work_seconds_total", model="stub", reason="cancelled") == pytest.approx(3)
    assert value(metrics, "replicast_wasted_work_seconds_total", model="stub", reason="lost") == 0


def test_what_is_cancelled_before_it_began_wastes_nothing(world: World, metrics: Metrics) -> None:
    a = world.ready("a")
    job = world.submit()
    world.do(world.pool.cancel(job.id, world.now))
    world.now += 9
    world.say(a, m.Failed(job=job.id, attempt=1, problem=m.Problem(code="cancelled", message="")))
    count(metrics, world)
    assert value(metrics, "replicast_wasted_work_seconds_total", model="stub", reason="cancelled") == 0


def test_a_note_tells_of_the_attempt_that_was_lost_and_not_of_the_next(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    job = world.submit()
    first = a if a.runs() else b
    world.start(first, first.runs()[0])
    world.die(first)
    assert (job.attempt, job.worker) == (2, (b if first is a else a).name)
    [requeued] = [note for note in world.noted if note.event == "job_requeued"]
    assert requeued.fields == {
        "job": job.id,
        "request": "",
        "attempt": 1,
        "worker": first.name,
        "reason": "ended",
        "crashes": 1,
    }


def test_poison_is_an_event_and_an_outcome(metrics: Metrics) -> None:
    world = World(limits=Limits(max_attempts=1))
    a = world.ready("a")
    job = world.submit()
    world.start(a, a.runs()[0])
    world.die(a)
    count(metrics, world)
    outcome = world.outcomes[job.id]
    assert isinstance(outcome, Poison)
    metrics.ended(job, outcome, world.now)
    assert value(metrics, "replicast_events_total", event="job_poison") == 1
    assert value(metrics, "replicast_jobs_finished_total", model="stub", outcome="poison") == 1
    assert value(metrics, "replicast_job_retries_total", model="stub", reason="ended") == 0


def test_the_phases_of_a_picture_add_up_to_its_time(world: World, metrics: Metrics) -> None:
    job = Job(
        "j", "stub", "generate", m.Parameters(prompt="", width=64, height=64, steps=4, guidance=1), (1,), 1e9, 8.0
    )
    job.accepted = 10.0
    facts = (m.ImageFacts(seed=1, width=64, height=64, format="png", bytes=len(PNG)),)
    timings = m.Timings(wait_ms=500, inference_ms=2000, encode_ms=250)
    metrics.ended(job, Result((PNG,), facts, timings, "a", 1, queue_ms=1000), 14.0)
    spent = {
        phase: value(metrics, "replicast_image_phase_seconds_sum", model="stub", phase=phase)
        for phase in ("queue", "dispatch", "inference", "encode")
    }
    assert spent == pytest.approx({"queue": 1.5, "dispatch": 0.25, "inference": 2.0, "encode": 0.25})
    assert value(metrics, "replicast_image_bytes_total", model="stub") == len(PNG)


def test_waiting_is_counted_from_when_the_request_was_read(world: World) -> None:
    a = world.ready("a")
    parameters = m.Parameters(prompt="x", width=64, height=64, steps=4, guidance=1)
    world.now = 60.0
    # Its body took a minute to arrive.
    job = Job("slow", "stub", "generate", parameters, (1,), 1e9, submitted=0.0)
    world.do(world.pool.submit(job, world.now))
    world.done(a, a.runs()[-1])
    assert world.result(job).queue_ms == 0


def test_a_device_that_makes_no_step_ages_while_it_has_work(world: World) -> None:
    a = world.ready("a")
    worker = world.pool.workers["a"]
    world.now = 100.0
    assert worker.step_age(world.now) == 0, "no work, no age"
    world.submit()
    world.now += 5
    assert worker.step_age(world.now) == pytest.approx(5)
    world.say(a, m.Pong(count=1, steps=3, memory_bytes=7))
    assert worker.step_age(world.now) == 0
    world.now += 2
    world.say(a, m.Pong(count=2, steps=3, memory_bytes=7))
    assert worker.step_age(world.now) == pytest.approx(2)
    world.done(a, a.runs()[-1])
    assert worker.step_age(world.now) == 0


def test_each_event_is_counted_also_without_a_job(metrics: Metrics) -> None:
    metrics.noted(Note("wire_error"), 0.0)
    assert value(metrics, "replicast_events_total", event="wire_error") == 1
