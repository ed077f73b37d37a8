"""Who leaves frees the device within one step of the real pipeline, whatever it is doing; counted, not timed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from shared.cards import Task
from shared.messages import Ack, Device, Done, Failed, Message, Parameters, Progress, Run, Wanted, WantedModel
from shared.sources import wanted
from tests.photos import noise, png, window
from worker import backends
from worker.backends import Backend
from worker.engine import Engine

pytestmark = pytest.mark.model
SHAPES = wanted("shapes")
STEPS = 100
PATIENCE = 60.0


class Watcher:
    """Hears the engine, cancels a job as soon as a step of it is told, and counts what the image model is asked."""

    def __init__(self) -> None:
        self.leave_at = STEPS
        self.left_at = 0
        self.heard: list[Message] = []
        # What it holds, once that is loaded.
        self.model: Any = None
        self._more = threading.Condition()
        self.engine = Engine(Device(kind="cpu", names=("cpu",), threads=1), self._hear, encode_threads=1)

    def _hear(self, message: Message, attachments: Sequence[bytes]) -> None:
        # From the engine's own thread, in the middle of the step: there is no race to be lost.
        if isinstance(message, Progress) and message.preview is None and message.step >= self.leave_at:
            self.left_at = self.left_at or message.step
            self.engine.cancel(message.job, message.attempt)
        with self._more:
            self.heard.append(message)
            self._more.notify_all()

    def last(self, kind: type[Any] | tuple[type[Any], ...]) -> Any:
        def found() -> list[Message]:
            return [message for message in self.heard if isinstance(message, kind)]

        with self._more:
            assert self._more.wait_for(found, PATIENCE), self.heard
            return found()[-1]

    def run(self, task: Task, steps: int, leave_at: int) -> Done | Failed:
        """What became of a run whose client leaves when it hears of this step."""
        self.leave_at, self.left_at = leave_at, 0
        self.heard.clear()
        asked = Parameters(
            prompt="a red circle",
            width=64,
            height=64,
            steps=steps,
            guidance=2.0,
            strength=1.0 if task in ("inpaint", "variation") else None,
        )
        run = Run(
            job="j",
            attempt=1,
            model="shapes",
            task=task,
            seeds=(1, 2),
            parameters=asked,
            epoch=SHAPES.epoch,
            digest=SHAPES.digest,
        )
        picture = png(noise(0, 64, 64))
        given = {"generate": (), "inpaint": (picture, window(64, 64)[0])}.get(task, (picture,))
        self.engine.run(run, given)
        end: Done | Failed = self.last((Done, Failed))
        return end


@pytest.fixture(scope="module")
def watcher() -> Iterator[Watcher]:
    made, create = Watcher(), backends.create

    def noticed(model: WantedModel, device: Device) -> Backend:
        made.model = create(model, device)
        return made.model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "create", noticed)
        made.engine.start()
        made.engine.apply(Wanted(version=1, models=(SHAPES,)))
        assert made.last(Ack).outcomes[0].problem is None
    yield made
    assert made.engine.stop(PATIENCE)


@pytest.mark.parametrize("task", ["generate", "edit", "inpaint", "variation"])
def test_one_step_more_is_all_that_is_made(watcher: Watcher, task: Task) -> None:
    asked = 0

    def count(module: Any, inputs: Any) -> None:
        nonlocal asked
        asked += 1

    hook = watcher.model._pipeline.transformer.register_forward_pre_hook(count)
    try:
        end = watcher.run(task, STEPS, leave_at=3)
    finally:
        hook.remove()
    assert isinstance(end, Failed)
    assert end.problem.code == "cancelled"
    # Progress is told ten times a second: it may have been a later step than the third.
    assert 3 <= watcher.left_at < STEPS - 1
    # Twice a step, since it is guided; and the one that was under way.
    assert asked == 2 * (watcher.left_at + 1)
    done = watcher.run("generate", 2, leave_at=STEPS)
    assert isinstance(done, Done)
    assert np.all([facts.bytes > 0 for facts in done.images])
