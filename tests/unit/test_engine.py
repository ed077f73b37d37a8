"""The engine: what is said of a run and in which order, while pictures come and go beside the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest

from shared.errors import OutOfMemory
from shared.formats import ImageHeader, image_header
from shared.messages import Done, Failed, Parameters, Progress, Run
from tests.flavours import picture, saved
from tests.unit.stage import PATIENCE, PIXELS, Gate, Stage, fail, finish, show, staged, step
from worker import engine, finishing, inputs
from worker.device import DeviceLost


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    yield from staged(monkeypatch)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """With two encoders."""
    yield from staged(monkeypatch, 2)


GOOD = saved(picture(), "PNG")


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds up whoever decodes, by the number of pictures."""
    gate = Gate(inputs.read)
    gate.key = lambda run, attachments: run.job
    monkeypatch.setattr(inputs, "read", gate)
    yield gate
    for job in ("a", "b", "c"):
        gate.open(job)


@pytest.fixture
def showing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds up whoever encodes a preview."""
    gate = Gate(finishing.preview)
    monkeypatch.setattr(finishing, "preview", gate)
    yield gate
    gate.open()


def test_a_run_is_begun_stepped_and_done(stage: Stage) -> None:
    stage.begin("a", seeds=(5, 6))
    stage.puppet.orders.put(finish)
    done = stage.ended("a")
    assert isinstance(done, Done)
    assert [facts.seed for facts in done.images] == [5, 6]
    first = stage.of(Progress)[0]
    assert (first.step, first.total, first.preview) == (0, 8, None)
    assert stage.said.index(first) < stage.said.index(done)


def test_a_broken_picture_is_told_while_the_device_is_busy_with_another(stage: Stage) -> None:
    stage.begin("a")
    stage.run("b", GOOD, GOOD[:60])
    stage.run("c", GOOD)
    assert stage.code("b") == "invalid_image_file"
    end = stage.ended("b")
    assert isinstance(end, Failed)
    assert end.problem.param == "image[1]"
    assert not stage.ends("a")
    stage.puppet.orders.put(finish)
    stage.ended("a")
    stage.puppet.orders.put(finish)
    stage.ended("c")
    assert [run.job for run, _ in stage.puppet.asked] == ["a", "c"], "the device was asked for it"


def test_pictures_are_decoded_while_the_device_is_busy(stage: Stage, decoding: Gate) -> None:
    stage.begin("a")
    stage.run("b", GOOD)
    decoding.entered()
    decoding.open("b")
    stage.puppet.orders.put(finish)
    assert stage.puppet.begun.acquire(timeout=PATIENCE)
    [given] = stage.puppet.asked[1][1].images
    assert np.array_equal(given, np.asarray(picture()))


def test_who_leaves_while_a_picture_is_decoded_is_told_once(stage: Stage, decoding: Gate) -> None:
    """It waits for its turn: nothing that comes of the decoding is said any more, least of all that it is broken."""
    stage.begin("a")
    stage.run("b", b"junk")
    stage.run("c", GOOD)
    decoding.entered()
    stage.engine.cancel("b", 1)
    assert stage.code("b") == "cancelled"
    decoding.open("b")
    decoding.open("c")
    stage.puppet.orders.put(finish)
    stage.ended("a")
    stage.puppet.orders.put(finish)
    stage.ended("c")
    assert len(stage.ends("b")) == 1


def test_what_nobody_waits_for_is_not_decoded(stage: Stage, decoding: Gate) -> None:
    stage.begin("a")
    stage.run("b", GOOD)
    stage.run("c", b"junk")
    decoding.entered()
    stage.engine.cancel("c", 1)
    assert stage.code("c") == "cancelled"
    decoding.open("b")
    stage.puppet.orders.put(finish)
    stage.ended("a")
    stage.puppet.orders.put(finish)
    stage.ended("b")
    assert not decoding._entered.acquire(blocking=False)


def test_who_leaves_while_the_device_waits_for_a_picture_costs_it_nothing(stage: Stage, decoding: Gate) -> None:
    stage.run("a", GOOD)
    decoding.entered()
    stage.wait(lambda: stage.of(Progress))
    stage.engine.cancel("a", 1)
    decoding.open("a")
    assert stage.code("a") == "cancelled"
    assert not stage.puppet.asked


def test_a_cancel_ends_a_run_at_its_next_step(stage: Stage) -> None:
    stage.begin("a")
    stage.puppet.order(step(1))
    stage.engine.cancel("a", 2)
    stage.puppet.order(step(2))
    assert not stage.ends("a"), "another attempt was cancelled"
    stage.engine.cancel("a", 1)
    stage.puppet.order(step(3))
    assert stage.code("a") == "cancelled"
    stage.begin("b")


def test_a_finished_picture_does_not_wait_for_what_others_send(stage: Stage, decoding: Gate) -> None:
    stage.begin("a")
    stage.run("b", GOOD)
    decoding.entered()
    stage.puppet.orders.put(finish)
    assert isinstance(stage.ended("a"), Done)


# Previews


def test_previews_are_shown_before_the_picture(stage: Stage) -> None:
    stage.begin("a", previews=2)
    for number in range(2):
        stage.puppet.order(step(number + 1))
        stage.puppet.order(show(number))
    stage.puppet.orders.put(finish)
    done = stage.ended("a")
    assert stage.previews("a") == [0, 1]
    assert stage.said[-1] is done
    shown = stage.of(Progress)[-1]
    assert (shown.attempt, shown.total) == (1, 4)


def test_previews_are_left_out_where_the_encoders_have_enough_to_do(stage: Stage, showing: Gate) -> None:
    stage.begin("a", previews=3)
    for number in range(5):
        stage.puppet.order(show(number))
    showing.open()
    stage.puppet.orders.put(finish)
    assert isinstance(stage.ended("a"), Done)
    # One is encoded and two wait for that: as many as a request can ask for.
    assert stage.previews("a") == [0, 1, 2]


def test_a_picture_waits_for_no_preview_but_its_own(wide: Stage, showing: Gate) -> None:
    wide.begin("a", previews=1)
    wide.puppet.order(show(0))
    showing.entered()
    wide.puppet.orders.put(finish)
    wide.begin("b")
    wide.puppet.orders.put(finish)
    showing.open()
    assert isinstance(wide.ended("b"), Done)
    assert isinstance(wide.ended("a"), Done)
    assert wide.previews("a") == [0]


def test_a_later_preview_that_is_ready_sooner_waits_for_the_earlier(
    wide: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(finishing.preview)
    gate.key = lambda pixels, run: bool(pixels.any())
    monkeypatch.setattr(finishing, "preview", gate)
    wide.begin("a", previews=2)
    wide.puppet.order(lambda on_step, on_preview: on_preview(0, PIXELS))
    wide.puppet.order(lambda on_step, on_preview: on_preview(1, PIXELS + np.uint8(9)))
    gate.entered()
    gate.entered()
    gate.open(True)
    wide.puppet.order(step(3))
    gate.open(False)
    wide.puppet.orders.put(finish)
    wide.ended("a")
    assert wide.previews("a") == [0, 1]


@pytest.mark.parametrize("error", [OutOfMemory("no room"), ValueError("a bug")], ids=["ours", "a bug"])
def test_nothing_is_shown_of_a_run_that_has_failed(stage: Stage, showing: Gate, error: Exception) -> None:
    stage.begin("a", previews=1)
    stage.puppet.order(show(0))
    showing.entered()
    stage.puppet.order(fail(error))
    assert stage.code("a") == ("out_of_memory" if isinstance(error, OutOfMemory) else "job_failed")
    showing.open()
    stage.begin("b")
    stage.puppet.orders.put(finish)
    stage.ended("b")
    assert stage.previews("a") == []


def test_nothing_is_shown_of_a_run_that_was_left(stage: Stage, showing: Gate) -> None:
    stage.begin("a", previews=1)
    stage.puppet.order(show(0))
    showing.entered()
    stage.engine.cancel("a", 1)
    stage.puppet.order(step(2))
    assert stage.code("a") == "cancelled"
    showing.open()
    stage.begin("b")
    stage.puppet.orders.put(finish)
    stage.ended("b")
    assert stage.previews("a") == []


def test_a_preview_that_cannot_be_made_costs_no_picture(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pixels: Any, run: Run) -> bytes:
        raise ValueError("a bug")

    stage.begin("a", previews=3)
    with monkeypatch.context() as patch:
        patch.setattr(finishing, "preview", broken)
        for number in range(3):
            stage.puppet.order(show(number))
            [task] = stage.engine._current
            wait(task.previews)
    stage.puppet.order(show(3))
    stage.puppet.orders.put(finish)
    assert isinstance(stage.ended("a"), Done)
    assert stage.previews("a") == [3], "a broken one keeps its place with the encoders"


def test_a_preview_has_the_form_of_the_picture() -> None:
    parameters = Parameters(prompt="x", width=96, height=64, steps=4, guidance=1.0, output_format="webp")
    run = Run(job="a", attempt=1, model="m", task="generate", seeds=(1,), parameters=parameters, epoch=0, digest="d")
    header = image_header(finishing.preview(np.zeros((8, 12, 3), np.uint8), run))
    assert header == ImageHeader("webp", 96, 64)


# What else becomes of a run


def test_steps_are_counted_once(stage: Stage) -> None:
    stage.begin("a")
    for number in (1, 1, 2, 2, 2, 3):
        stage.puppet.order(step(number))
    assert stage.engine.steps == 3
    assert stage.engine.memory_bytes() == 7


def test_a_run_for_another_state_is_refused(stage: Stage) -> None:
    stage.run("a", epoch=3)
    assert stage.code("a") == "behind"
    stage.run("b", GOOD, digest="other")
    assert stage.code("b") == "behind"
    assert not stage.puppet.asked


def test_a_device_that_is_lost_ends_the_process(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    stage.begin("a")
    stage.puppet.order(fail(DeviceLost("gone")))
    stage.begin("b")
    assert ended == [engine.EXIT_DEVICE_LOST]
    assert not stage.ends("a"), "the gateway has to run it elsewhere"


def test_a_stop_ends_what_runs_at_its_next_step(stage: Stage) -> None:
    stage.begin("a")
    stopping = threading.Thread(target=stage.engine.stop, args=(PATIENCE,))
    stopping.start()
    while not stage.engine._stopping:
        threading.Event().wait(0.005)
    stage.puppet.order(step(1))
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert stage.code("a") == "cancelled"
