"""A pool with scripted workers around it: no socket, no clock, no task. What the pool sends is kept, by worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from gateway.actions import Action, Finish, Kill, Note, Send, Show
from gateway.jobs.job import Job, Outcome, Result
from gateway.limits import Limits
from gateway.pool import Pool
from shared import cards
from shared import messages as m
from shared.sources import wanted
from shared.wire import Buffer, Packet, Stamp
from tests.pictures import hollow

PNG = hollow("png", 64, 64)
MODEL = wanted("stub")
CARD = cards.ModelCard(
    family="stub",
    revision="1",
    tasks=("generate",),
    sizes=cards.SizeRule(default=cards.Size(width=64, height=64)),
    steps=4,
    max_steps=100,
    guidance=1.0,
    max_guidance=20.0,
    negative_prompt=True,
)


@dataclass(eq=False)
class Puppet:
    """A worker as its gateway sees it; the test moves it."""

    name: str
    peer: bytes
    token: str
    incarnation: str
    session: str = ""
    seq: int = 0
    inbox: list[m.Message] = field(default_factory=list)
    # What came with each run, by its job and attempt.
    given: dict[tuple[str, int], tuple[Buffer, ...]] = field(default_factory=dict)

    def took(self, kind: type[m.Message]) -> list[m.Message]:
        """The messages of a kind that it was sent."""
        return [message for message in self.inbox if isinstance(message, kind)]

    def runs(self) -> list[m.Run]:
        """The runs it was handed."""
        return [message for message in self.inbox if isinstance(message, m.Run)]


class World:
    """The pool and everybody around it."""

    def __init__(self, *, limits: Limits | None = None, models: tuple[m.WantedModel, ...] = (MODEL,)) -> None:
        self.pool = Pool(models, limits or Limits(), term=7)
        self.now = 0.0
        self.card = CARD
        self.puppets: dict[bytes, Puppet] = {}
        self.outcomes: dict[str, Outcome] = {}
        # Previews, as (job, attempt, number).
        self.shown: list[tuple[str, int, int]] = []
        self.killed: list[str] = []
        self.notes: list[str] = []
        self.noted: list[Note] = []
        self._ids = count(1)

    def do(self, actions: list[Action]) -> None:
        """Carry out what the pool decided."""
        for action in actions:
            match action:
                case Send():
                    if puppet := self.puppets.get(action.peer):
                        puppet.inbox.append(action.message)
                        match action.message:
                            case m.Welcome(session=session):
                                puppet.session = session
                            case m.Run(job=job, attempt=attempt):
                                puppet.given[job, attempt] = action.attachments
                case Finish():
                    assert action.job.id not in self.outcomes, "a job had two answers"
                    self.outcomes[action.job.id] = action.outcome
                case Show():
                    assert action.job.id not in self.outcomes, "a job was shown after its answer"
                    self.shown.append((action.job.id, action.job.attempt, action.preview))
                case Kill():
                    self.killed.append(action.worker)
                case Note():
                    self.notes.append(action.event)
                    self.noted.append(action)

    def job(self, model: str = "stub", *, seed: int = 1, deadline: float = 1e9, steps: int = 4, **more: Any) -> Job:
        """A job that nobody has submitted yet."""
        number = next(self._ids)
        self.now += 0.001
        parameters = m.Parameters(prompt="x", width=64, height=64, steps=steps, guidance=1.0)
        return Job(
            id=f"j{number}",
            model=model,
            task="generate",
            parameters=parameters,
            seeds=(seed,),
            deadline=deadline,
            submitted=self.now,
            **more,
        )

    def submit(self, model: str = "stub", **asked: Any) -> Job:
        """Submit a job; what `Pool.submit` raises passes through."""
        job = self.job(model, **asked)
        self.do(self.pool.submit(job, self.now))
        return job

    def boot(self, name: str) -> Puppet:
        """Start a process of this name and let it say Hello."""
        number = next(self._ids)
        puppet = Puppet(name, f"peer{number}".encode(), f"token{number}", f"life{number}")
        self.do(self.pool.expect(name, puppet.token, self.now))
        self.puppets[puppet.peer] = puppet
        self.hello(puppet)
        return puppet

    def ready(self, name: str) -> Puppet:
        """A worker that has acknowledged the wanted state."""
        puppet = self.boot(name)
        self.ack(puppet)
        return puppet

    def hello(
        self,
        puppet: Puppet,
        *,
        token: str | None = None,
        protocol: int = m.PROTOCOL,
        running: tuple[m.Run, ...] = (),
    ) -> None:
        """Say Hello, with this token or its own, and these runs still in hand."""
        hello = m.Hello(
            protocol=protocol,
            name=puppet.name,
            token=puppet.token if token is None else token,
            incarnation=puppet.incarnation,
            slots=1,
            pid=1,
            host="here",
            device=m.Device(kind="stub", names=("0",)),
            running=tuple(m.InHand(job=run.job, attempt=run.attempt) for run in running),
        )
        puppet.seq += 1
        self.do(self.pool.received(puppet.peer, Packet(hello, Stamp(0, puppet.incarnation, "", puppet.seq)), self.now))

    def say(self, puppet: Puppet, message: m.Message, attachments: tuple[bytes, ...] = ()) -> None:
        """Say something in its session."""
        puppet.seq += 1
        stamp = Stamp(0, puppet.incarnation, puppet.session, puppet.seq)
        self.do(self.pool.received(puppet.peer, Packet(message, stamp, attachments), self.now))

    def ack(self, puppet: Puppet, *, state: int = -1, without: str = "", digest: str = "") -> None:
        """Acknowledge the newest wanted state it was sent, or another; every model loaded, `without` this one.

        With a `digest` it says that of each model instead of the one that was wanted.
        """
        wanted = [message.wanted for message in puppet.inbox if isinstance(message, m.Welcome | m.Want)][state]
        failed = m.Problem(code="load_failed", message="it does not fit")
        outcomes = tuple(
            m.Outcome(model=model.id, problem=failed)
            if model.id == without
            else m.Outcome(model=model.id, card=self.card, epoch=model.epoch, digest=digest or model.digest)
            for model in wanted.models
        )
        self.say(puppet, m.Ack(version=wanted.version, outcomes=outcomes))

    def start(self, puppet: Puppet, run: m.Run) -> None:
        """Say that the device has begun this run."""
        self.say(puppet, m.Progress(job=run.job, attempt=run.attempt, step=0, total=4))

    def show(self, puppet: Puppet, run: m.Run, preview: int, *images: bytes) -> None:
        """Show a preview of a run: a good one, unless others are given."""
        message = m.Progress(job=run.job, attempt=run.attempt, step=preview + 1, total=4, preview=preview)
        self.say(puppet, message, images or (PNG,))

    def done(self, puppet: Puppet, run: m.Run, image: bytes = PNG, *, seconds: float = 0.05, batch: int = 1) -> None:
        """Deliver the picture of a run, which took the device so long."""
        facts = m.ImageFacts(seed=run.seeds[0], width=64, height=64, format="png", bytes=len(image))
        timings = m.Timings(inference_ms=seconds * 1000, batch=batch)
        message = m.Done(job=run.job, attempt=run.attempt, images=(facts,), timings=timings)
        self.say(puppet, message, (image,))

    def die(self, puppet: Puppet) -> None:
        """Its process ends."""
        self.puppets.pop(puppet.peer, None)
        self.do(self.pool.exited(puppet.name, "signal SIGKILL", self.now))

    def tick(self, times: int = 1, *, hearing: tuple[Puppet, ...] = (), punctual: bool = True) -> None:
        """Let ping intervals pass; those in `hearing` answer each ping."""
        for _ in range(times):
            self.now += self.pool.limits.ping_seconds
            self.do(self.pool.tick(self.now, punctual=punctual))
            for puppet in hearing:
                self.say(puppet, m.Pong(count=1, steps=0, memory_bytes=0))

    def result(self, job: Job) -> Result:
        """The result of a job that must have one."""
        outcome = self.outcomes[job.id]
        assert isinstance(outcome, Result), outcome
        return outcome
