"""An engine with a backend that its test moves step by step, and all that it says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.cards import ModelCard, Size, SizeRule, Task
from shared.loras import LoraState
from shared.messages import Ack, Device, Done, Failed, Match, Message, Parameters, Progress, Run, Wanted, WantedModel
from worker import backends, engine
from worker.backends import Inputs, OnPreview, OnStep, Picture

DEVICE = Device(kind="stub", names=("0",))
MODEL = WantedModel(id="m", source="stub", backend="stub")
CARD = ModelCard(
    family="f",
    revision="1",
    tasks=("generate", "edit"),
    sizes=SizeRule(default=Size(width=64, height=64)),
    steps=4,
    max_steps=100,
    guidance=1.0,
    max_guidance=2.0,
    negative_prompt=False,
)
PIXELS: NDArray[np.uint8] = np.zeros((64, 64, 3), np.uint8)
# How long a test that fails waits for what does not come.
PATIENCE = 20.0


class Puppet:
    """A backend that does one thing after the other as its test says."""

    def __init__(self) -> None:
        self.orders: queue.Queue[Callable[[OnStep, OnPreview], object]] = queue.Queue()
        self.asked: list[tuple[Run, Inputs]] = []
        self.together: list[str] = []
        self.adopted: list[tuple[LoraState, str]] = []
        self.begun = threading.Semaphore(0)
        self.obeyed = threading.Semaphore(0)

    def load(self) -> ModelCard:
        return CARD

    def generate(self, run: Run, inputs: Inputs, on_step: OnStep, on_preview: OnPreview) -> list[Picture]:
        self.asked.append((run, inputs))
        self.begun.release()
        while (order := self.orders.get(timeout=PATIENCE)) is not finish:
            try:
                order(on_step, on_preview)
            finally:
                self.obeyed.release()
        return [Picture(seed, pixels=PIXELS) for seed in run.seeds]

    def generate_together(self, runs: Sequence[Run], on_step: OnStep) -> list[Picture]:
        self.together = [run.job for run in runs]
        return [picture for run in runs[:1] for picture in self.generate(run, Inputs(), on_step, _unseen)] + [
            Picture(run.seeds[0], pixels=PIXELS) for run in runs[1:]
        ]

    def prepare(self, loras: LoraState, shelf: str) -> tuple[Match, ...]:
        return tuple(Match(sha256=adapter.sha256) for adapter in loras.adapters)

    def adopt(self, loras: LoraState, shelf: str) -> str:
        self.adopted.append((loras, shelf))
        return loras.digest[:8]

    def memory_bytes(self) -> int:
        return 7

    def unload(self) -> None:
        pass

    def order(self, what: Callable[[OnStep, OnPreview], object]) -> None:
        """Have this done, and wait until it is."""
        self.orders.put(what)
        assert self.obeyed.acquire(timeout=PATIENCE)


def _unseen(preview: int, pixels: object) -> None:
    raise AssertionError("a batch has no previews")


def finish(on_step: OnStep, on_preview: OnPreview) -> None:
    """The order to deliver the pictures."""


def step(number: int, total: int = 4) -> Callable[[OnStep, OnPreview], object]:
    return lambda on_step, on_preview: on_step(number, total)


def show(number: int) -> Callable[[OnStep, OnPreview], object]:
    return lambda on_step, on_preview: on_preview(number, PIXELS)


def fail(error: Exception) -> Callable[[OnStep, OnPreview], object]:
    def act(on_step: OnStep, on_preview: OnPreview) -> None:
        raise error

    return act


class Stage:
    """An engine with a puppet for a backend, and everything it has said."""

    def __init__(self, puppet: Puppet, threads: int) -> None:
        self.puppet = puppet
        self.said: list[Message] = []
        self._more = threading.Condition()
        self.engine = engine.Engine(DEVICE, self._hear, encode_threads=threads)
        self.engine.start()
        self.engine.apply(Wanted(version=1, models=(MODEL,)))
        self.wait(lambda: self.of(Ack))

    def _hear(self, message: Message, attachments: Sequence[bytes]) -> None:
        with self._more:
            if isinstance(message, Done) or (isinstance(message, Progress) and message.preview is not None):
                assert attachments
            self.said.append(message)
            self._more.notify_all()

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]

    def wait(self, condition: Callable[[], object]) -> None:
        with self._more:
            assert self._more.wait_for(condition, PATIENCE), self.said

    def ended(self, job: str) -> Message:
        """The one end of this job, waited for."""
        self.wait(lambda: self.ends(job))
        [end] = self.ends(job)
        return end

    def ends(self, job: str) -> list[Any]:
        return [message for message in self.of(Done) + self.of(Failed) if message.job == job]

    def code(self, job: str) -> str:
        end = self.ended(job)
        assert isinstance(end, Failed), end
        return end.problem.code

    def run(self, job: str, *given: bytes, seeds: tuple[int, ...] = (1,), previews: int = 0, **changed: Any) -> None:
        parameters = Parameters(prompt="x", width=64, height=64, steps=4, guidance=1.0)
        told = {"epoch": MODEL.epoch, "digest": MODEL.digest, "attempt": 1} | changed
        task: Task = "edit" if given else "generate"
        run = Run(job=job, model="m", task=task, seeds=seeds, parameters=parameters, previews=previews, **told)
        self.engine.run(run, given)

    def begin(self, job: str, *given: bytes, **changed: Any) -> None:
        """Have the device busy with this."""
        self.run(job, *given, **changed)
        assert self.puppet.begun.acquire(timeout=PATIENCE)

    def previews(self, job: str) -> list[int]:
        return [said.preview for said in self.of(Progress) if said.job == job and said.preview is not None]


def staged(monkeypatch: pytest.MonkeyPatch, threads: int = 1) -> Iterator[Stage]:
    """A stage for one test, whose puppet does in the end whatever it still has to."""
    puppet = Puppet()
    monkeypatch.setattr(backends, "create", lambda model, device: puppet)
    stage = Stage(puppet, threads)
    yield stage
    for _ in range(9):
        puppet.orders.put(finish)
    assert stage.engine.stop(PATIENCE)


class Gate:
    """Lets calls of a function through when it is opened; what it is asked with is seen at once."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act
        self._open: dict[object, threading.Event] = {}
        self._entered = threading.Semaphore(0)
        self.key: Callable[..., object] = lambda *_: None

    def __call__(self, *args: Any) -> Any:
        self._entered.release()
        assert self._event(self.key(*args)).wait(3 * PATIENCE)
        return self._act(*args)

    def _event(self, key: object) -> threading.Event:
        return self._open.setdefault(key, threading.Event())

    def entered(self) -> None:
        assert self._entered.acquire(timeout=PATIENCE)

    def open(self, key: object = None) -> None:
        self._event(key).set()
