"""The job: one picture that was accepted, its states, and the attempts at it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.costs import Work
from shared.cards import Task
from shared.errors import ReplicastError
from shared.formats import ImageHeader, image_header
from shared.loras import NO_LORAS, Adapter, LoraState
from shared.messages import Done, ImageFacts, Parameters, Progress, Run, Timings, Tokens, WantedModel
from shared.wire import Buffer


class JobState(StrEnum):
    """QUEUED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED, and RUNNING -> QUEUED when a worker is lost."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a job brought: one encoded image per seed, as they came over the wire."""

    images: tuple[Buffer, ...]
    facts: tuple[ImageFacts, ...]
    timings: Timings
    worker: str
    attempts: int
    queue_ms: float = 0.0
    tokens: Tokens = Tokens()  # noqa: RUF009
    epoch: int = 0
    loras: LoraState = NO_LORAS


@dataclass(slots=True, eq=False)
class Job:
    """One unit of dispatch: a picture, from the encoded `inputs`, with so many `previews`.

    Times are the gateway's monotonic seconds, handed in by whoever holds the clock: `submitted` is when its request
    came, `accepted` when that was read and the job taken, `began` when a device began. `trace` is its tracer's.

    `owner` is whose it is, for fairness between them; `cost_seconds` what it was expected to take a device when it was
    accepted, and `due` its place in the queue. `attempt` numbers the dispatches, and fences results; `crashes` counts
    the workers that died with this job started, which is what `max_attempts` bounds: work that had not started is
    handed out again at no cost. `step` of `total` is what the present attempt has done, as last heard: 0 of 0 before it
    has begun.
    """

    id: str
    model: str
    task: Task
    parameters: Parameters
    seeds: tuple[int, ...]
    deadline: float
    submitted: float
    request_id: str = ""
    inputs: tuple[Buffer, ...] = ()
    previews: int = 0
    priority: int = 0
    owner: str = ""
    # Made in a call of its own: that was asked for, or a call with others has failed.
    alone: bool = False
    batch: str = ""
    batch_size: int = 1
    # In place of its model's own LoRAs, if any are given, even none.
    loras: tuple[Adapter, ...] | None = None
    # The one LoRA epoch of its model that it may be made with, if it is particular; what its present attempt is made
    # with follows.
    pin: int | None = None
    made_with: LoraState = NO_LORAS
    epoch: int = 0
    digest: str = ""
    cost_seconds: float = 0.0
    due: float = 0.0
    state: JobState = JobState.QUEUED
    attempt: int = 0
    crashes: int = 0
    started: bool = False
    step: int = 0
    total: int = 0
    accepted: float = 0.0
    dispatched: float = 0.0
    began: float = 0.0
    worker: str = ""
    trace: object = None

    def run(self, model: WantedModel) -> Run:
        """The message that hands out the present attempt, to be made with this state of its model."""
        self.epoch, self.digest = model.epoch, model.digest
        self.made_with = model.loras if self.loras is None else LoraState(adapters=self.loras)
        return Run(
            job=self.id,
            attempt=self.attempt,
            model=self.model,
            task=self.task,
            seeds=self.seeds,
            parameters=self.parameters,
            epoch=self.epoch,
            digest=self.digest,
            request_id=self.request_id,
            previews=self.previews,
            batch=self.batch,
            batch_size=self.batch_size,
            loras=self.loras,
        )

    def result(self, worker: str, images: tuple[Buffer, ...], done: Done) -> Result:
        """What the present attempt has brought."""
        queue_ms = (self.dispatched - self.accepted) * 1000
        facts, timings = done.images, done.timings
        return Result(images, facts, timings, worker, self.attempt, queue_ms, done.tokens, self.epoch, self.made_with)

    def accepts(self, done: Done, images: Sequence[Buffer]) -> bool:
        """Whether a result is what was asked for, by count and by what its pictures say of themselves, undecoded."""
        return len(images) == len(done.images) == len(self.seeds) and all(
            self._is_as_asked(data)
            and len(data) == facts.bytes
            and (facts.width, facts.height) == (self.parameters.width, self.parameters.height)
            and (facts.format, facts.seed) == (self.parameters.output_format, seed)
            for data, facts, seed in zip(images, done.images, self.seeds, strict=True)
        )

    def shows(self, progress: Progress, images: Sequence[Buffer]) -> bool:
        """Whether a sign of progress brings no preview, or one that was asked for."""
        if progress.preview is None:
            return not images
        due = 0 <= progress.preview < self.previews * len(self.seeds)
        return due and len(images) == 1 and self._is_as_asked(images[0])

    def hear(self, progress: Progress, now: float) -> None:
        """The attempt has begun, and come this far; what is told late takes nothing back."""
        if not self.started:
            self.started, self.began = True, now
        self.total = max(0, progress.total)
        self.step = min(max(self.step, progress.step), self.total)

    def rewind(self) -> None:
        """The attempt is lost: the next one begins at nothing."""
        self.started, self.step, self.total, self.worker = False, 0, 0, ""
        self.batch, self.batch_size = "", 1

    def _is_as_asked(self, image: Buffer) -> bool:
        """One that moves, or is to be turned, is none that was asked for."""
        asked = self.parameters
        return image_header(image) == ImageHeader(asked.output_format, asked.width, asked.height)

    def move(self, state: JobState) -> None:
        """Go to `state`; a move that MOVES does not have is a bug of ours and raises."""
        if state not in MOVES[self.state]:
            raise RuntimeError(f"job {self.id}: {self.state} -> {state} is no move")
        self.state = state

    @property
    def work(self) -> Work:
        """What the job asks of a device."""
        return Work(self.parameters.width * self.parameters.height, self.parameters.steps * len(self.seeds))

    @property
    def signature(self) -> Hashable:
        """Jobs of one signature can be made in one call: all that a pipeline takes once for all its pictures."""
        asked = self.parameters
        guided = bool(asked.negative_prompt)
        size = asked.width, asked.height
        return self.model, *size, asked.steps, asked.guidance, guided, asked.transparent, self.loras, self.pin

    @property
    def over(self) -> bool:
        """Whether the job has its one answer."""
        return not MOVES[self.state]


Outcome = Result | ReplicastError
