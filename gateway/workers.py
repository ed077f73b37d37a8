"""The worker record, its states, and what a worker may say in which."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.causes import Death
from gateway.jobs.job import Job
from shared.cards import ModelCard
from shared.errors import LoraFailed
from shared.messages import (
    Ack,
    Bye,
    Device,
    Done,
    Drain,
    Failed,
    Hello,
    Message,
    Outcome,
    Pong,
    Prepared,
    Progress,
    Wanted,
)


class State(StrEnum):
    """LOADING -> READY -> DRAINING -> GONE; see MOVES."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


MOVES: dict[State, frozenset[State]] = {
    State.LOADING: frozenset({State.READY, State.DRAINING, State.GONE}),
    State.READY: frozenset({State.DRAINING, State.GONE}),
    State.DRAINING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}

_MOST_RECENT = 32

# What a worker may say once it has been welcomed. Anything else ends its session.
SAYS: frozenset[type[Message]] = frozenset({Ack, Prepared, Pong, Progress, Done, Failed, Drain, Bye})


@dataclass(slots=True, eq=False)
class Worker:
    """One session of one worker process. `peer` is the routing id that ROUTER gave this connection."""

    name: str
    peer: bytes
    incarnation: str
    session: str
    slots: int
    pid: int
    device: Device
    state: State = State.LOADING
    version: int = -1
    seq: int = 0
    sent: int = 0
    missed: int = 0
    pings: int = 0
    heard: bool = True
    heard_at: float = 0.0
    applying_ticks: int = 0
    still_ticks: int = 0
    asked: bool = False
    failed_ticks: int = 0
    steps: int = 0
    steps_seen: int = 0
    stepped: float = 0.0
    memory_bytes: int = 0
    served: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    # The LoRAs that requests brought along, by hash, the last one last: what it is likely to have at hand.
    recent: dict[str, None] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def from_hello(cls, peer: bytes, session: str, hello: Hello, seq: int, jobs: dict[str, Job]) -> Worker:
        """The record of a worker that has just been let in by its message number `seq`, with these jobs in hand."""
        return cls(
            name=hello.name,
            peer=peer,
            incarnation=hello.incarnation,
            seq=seq,
            session=session,
            slots=hello.slots,
            pid=hello.pid,
            device=hello.device,
            jobs=jobs,
        )

    def hand_over(self, hello: Hello) -> dict[str, Job]:
        """The jobs that the same process, which introduces itself again, still has in hand: they go on."""
        if hello.incarnation != self.incarnation:
            return {}
        held = [(running.job, running.attempt) for running in hello.running]
        kept = {name: job for name, job in self.jobs.items() if (name, job.attempt) in held}
        self.jobs = {name: job for name, job in self.jobs.items() if name not in kept}
        return kept

    def move(self, state: State) -> None:
        """Go to `state`; a move that MOVES does not have is a bug of ours and raises."""
        if state not in MOVES[self.state]:
            raise RuntimeError(f"worker {self.name}: {self.state} -> {state} is no move")
        self.state = state

    def acknowledge(self, ack: Ack, wanted: Wanted) -> Death | None:
        """Take down what it has applied; with all of that it is ready. Why it has to go, if its state is not ours."""
        self.version = ack.version
        self.outcomes = {outcome.model: outcome for outcome in ack.outcomes}
        if ack.version != wanted.version:
            return None
        digests = {model.id: model.digest for model in wanted.models}
        if any(outcome.card and outcome.digest != digests.get(outcome.model) for outcome in ack.outcomes):
            return "digest_mismatch"
        if any(outcome.problem and outcome.problem.code == LoraFailed.code for outcome in ack.outcomes):
            # Its weights are in doubt, and it could not mend them: a new process begins with the files.
            return "lora_failed"
        if self.state is State.LOADING:
            self.move(State.READY)
        return None

    def may_say(self, message: Message) -> bool:
        """Whether a worker may say this at all."""
        return type(message) in SAYS

    def counted(self, pong: Pong, now: float) -> None:
        """Take down what it has counted: the steps of its device, and the memory it uses."""
        if pong.steps != self.steps:
            self.stepped = now
        self.steps, self.memory_bytes = pong.steps, pong.memory_bytes

    def step_age(self, now: float) -> float:
        """How long ago, in seconds, its device was seen to make a step while it has work; 0 without any."""
        if not self.jobs:
            return 0.0
        return max(0.0, now - max(self.stepped, min(job.dispatched for job in self.jobs.values())))

    def take(self, job: Job) -> None:
        """Have this job in hand."""
        self.jobs[job.id] = job
        for adapter in job.loras or ():
            self.recent.pop(adapter.sha256, None)
            self.recent[adapter.sha256] = None
        while len(self.recent) > _MOST_RECENT:
            del self.recent[next(iter(self.recent))]

    def lacks(self, job: Job) -> int:
        """How many of the LoRAs that this job brings along it would have to fetch first."""
        return sum(adapter.sha256 not in self.recent for adapter in job.loras or ())

    def running(self) -> list[Job]:
        """What its device has begun; one that could not say so yet has begun what it was handed first."""
        jobs = list(self.jobs.values())
        return [job for job in jobs if job.started] or jobs[: self.slots]

    def card(self, model: str) -> ModelCard | None:
        """The card of a model that this worker holds, else None."""
        outcome = self.outcomes.get(model)
        return outcome.card if outcome else None
