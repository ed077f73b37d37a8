"""A fleet without sockets: the real pool, the real residents of each worker with the real stub, and a wire of queues.

Whoever holds a fleet decides what moves when: a message on its way, a vote, a turn of an engine, a death. Every picture
that comes is held against what its decision says, from its own pixels.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.actions import Action, Finish, Kill, Send, Voted
from gateway.ballots import Ballot
from gateway.jobs.job import Job, Result
from gateway.limits import Limits
from gateway.pool import Pool
from shared import messages as m
from shared.errors import LoraFailed, ReplicastError
from shared.loras import NO_LORAS, Adapter, LoraState
from shared.wire import Packet, Stamp
from tests.adapters import layers, shelved
from tests.pictures import hollow
from worker.backends import Inputs
from worker.device import DeviceLost
from worker.residents import Residents

LIMITS = Limits(ping_seconds=1, gone_after=4, prepare_seconds=3, load_seconds=60, stuck_seconds=60)
DEVICE = m.Device(kind="stub", names=("0",))
MODEL = "stub"


@dataclass(eq=False)
class Replica:
    """One worker: what is on the wire to and from it, what it has to do, and what its device is about."""

    name: str
    peer: bytes
    token: str
    incarnation: str
    session: str = ""
    seq: int = 0
    inbox: deque[m.Message] = field(default_factory=deque)
    outbox: deque[tuple[m.Message, str, tuple[bytes, ...]]] = field(default_factory=deque)
    wanted: m.Wanted | None = None
    asked: deque[m.Prepare] = field(default_factory=deque)
    tasks: deque[m.Run] = field(default_factory=deque)
    current: tuple[m.Run, bytes] | None = None
    residents: Residents = field(default_factory=lambda: Residents(DEVICE))

    def say(self, message: m.Message, *attachments: bytes) -> None:
        self.outbox.append((message, self.session, attachments))

    def hear(self) -> None:
        """Take one message from the wire."""
        match message := self.inbox.popleft():
            case m.Welcome():
                self.session, self.wanted = message.session, message.wanted
            case m.Want():
                self.wanted = message.wanted
            case m.Prepare():
                self.asked.append(message)
            case m.Run():
                self.tasks.append(message)
            case m.Cancel(job=job, attempt=attempt):
                for run in [run for run in self.tasks if (run.job, run.attempt) == (job, attempt)]:
                    self.tasks.remove(run)
                    self._fail(run, "cancelled")
            case m.Ping(count=count):
                self.say(m.Pong(count=count, steps=0, memory_bytes=0))

    def vote(self) -> None:
        """Answer what it was asked first, whatever its device is about."""
        self.say(self.residents.prepare(self.asked.popleft()))

    def work(self) -> None:
        """One turn of the engine: finish what runs, else reconcile, else begin what waits. Raises DeviceLost."""
        if self.current:
            (run, picture), self.current = self.current, None
            asked = run.parameters
            facts = m.ImageFacts(
                seed=run.seeds[0], width=asked.width, height=asked.height, format="png", bytes=len(picture)
            )
            self.say(m.Done(job=run.job, attempt=run.attempt, images=(facts,), timings=m.Timings()), picture)
        elif self.wanted:
            wanted, self.wanted = self.wanted, None
            self.say(m.Ack(version=wanted.version, outcomes=self.residents.reconcile(wanted)))
        elif self.tasks:
            self._begin(self.tasks.popleft())

    def _begin(self, run: m.Run) -> None:
        self.say(m.Progress(job=run.job, attempt=run.attempt, step=0, total=run.parameters.steps))
        try:
            backend = self.residents.backend(run)
            [picture] = backend.generate(run, Inputs(), lambda step, total: None, lambda index, pixels: None)
        except ReplicastError as error:
            self._fail(run, error.code)
            if isinstance(error, LoraFailed):
                self.residents.doubt(run.model)
                self.residents.mend()
            return
        assert picture.pixels is not None
        self.current = run, hollow("png", run.parameters.width, run.parameters.height, picture.pixels.tobytes())

    def _fail(self, run: m.Run, code: str) -> None:
        self.say(m.Failed(job=run.job, attempt=run.attempt, problem=m.Problem(code=code, message="")))


class Fleet:
    """A gateway that may fall, what it has written down, and its replicas."""

    def __init__(self, folder: Path, options: dict[str, m.Option]) -> None:
        self.shelf = folder
        self.model = m.WantedModel(id=MODEL, source="stub", backend="stub", options=options)
        self.files = [shelved(folder, layers(seed)).sha256 for seed in range(3)]
        self.rows: list[tuple[int, LoraState]] = [(0, NO_LORAS)]
        self.epochs = self.term = 0
        self.now = 0.0
        self.replicas: dict[str, Replica] = {}
        self.jobs: dict[str, tuple[Job, int]] = {}
        self.answers: dict[str, Result | ReplicastError] = {}
        self.agreed: Ballot | None = None
        self.reached: Counter[str] = Counter()
        # How many replicas have said of an epoch that they could.
        self.willing: Counter[int] = Counter()
        self._ids = 0
        self._last: dict[str, int] = {}
        self.start()

    # The gateway

    @property
    def state(self) -> LoraState:
        """What is decided."""
        return self.rows[-1][1]

    def start(self) -> None:
        """A gateway begins with what is written down, and nothing else."""
        self.term += 1
        epoch, loras = self.rows[-1]
        wanted = self.model.model_copy(update={"epoch": epoch, "loras": loras})
        self.pool = Pool([wanted], LIMITS, term=self.term, shelf=str(self.shelf))
        self.agreed, self.voting = None, False
        for replica in self.replicas.values():
            replica.inbox.clear()
            replica.outbox.clear()
            self.do(self.pool.expect(replica.name, replica.token, self.now))
            self.hello(replica)

    def propose(self, loras: LoraState) -> None:
        """Ask the replicas; without any LoRA in it there is nothing to ask."""
        self.epochs += 1
        if not loras.adapters:
            self.agreed = Ballot(MODEL, self.epochs, loras, set())
            return
        self.voting = True
        self.do(self.pool.propose(MODEL, self.epochs, loras, self.now))

    def decide(self) -> None:
        """Write down what was agreed on, and have it followed."""
        assert self.agreed
        ballot, self.agreed = self.agreed, None
        self.rows.append((ballot.epoch, ballot.loras))
        self.reached["decided"] += 1
        self.do(self.pool.decide(MODEL, ballot.epoch, ballot.loras, self.now))

    def ask(self, loras: tuple[Adapter, ...] | None) -> None:
        """Somebody wants a picture, with LoRAs of their own or the model's."""
        self._ids += 1
        self.now += 0.001
        parameters = m.Parameters(prompt="x", width=64, height=64, steps=1, guidance=1.0)
        job = Job(f"j{self._ids}", MODEL, "generate", parameters, (self._ids,), 1e9, self.now, loras=loras)
        self.jobs[job.id] = job, self.rows[-1][0]
        try:
            self.do(self.pool.submit(job, self.now))
        except ReplicastError:
            del self.jobs[job.id]

    def tick(self) -> None:
        """A ping interval passes."""
        self.now += LIMITS.ping_seconds
        self.do(self.pool.tick(self.now))

    # The replicas

    def boot(self, name: str) -> None:
        """A new process of this name says Hello."""
        self._ids += 1
        replica = Replica(name, f"peer{self._ids}".encode(), f"token{self._ids}", f"life{self._ids}")
        self.replicas[name] = replica
        self.do(self.pool.expect(name, replica.token, self.now))
        self.hello(replica)

    def hello(self, replica: Replica) -> None:
        """It introduces itself, for the first time or anew; what was on the wire is gone."""
        self._ids += 1
        replica.peer, replica.session = f"peer{self._ids}".encode(), ""
        replica.inbox.clear()
        hello = m.Hello(
            protocol=m.PROTOCOL,
            name=replica.name,
            token=replica.token,
            incarnation=replica.incarnation,
            slots=1,
            pid=1,
            host="here",
            device=DEVICE,
            resident=replica.residents.facts(),
        )
        # It has nothing in hand to tell of: what it was about is for nobody now.
        replica.tasks.clear()
        replica.outbox.clear()
        replica.current = None
        replica.seq += 1
        packet = Packet(hello, Stamp(0, replica.incarnation, "", replica.seq), ())
        self.do(self.pool.received(replica.peer, packet, self.now))

    def send(self, replica: Replica) -> None:
        """The next thing that it said arrives."""
        message, session, attachments = replica.outbox.popleft()
        replica.seq += 1
        stamp = Stamp(0, replica.incarnation, session, replica.seq)
        match message:
            case m.Failed(problem=problem):
                self.reached[problem.code] += 1
            case m.Prepared(problem=None, epoch=epoch):
                self.willing[epoch] += 1
        self.do(self.pool.received(replica.peer, Packet(message, stamp, attachments), self.now))

    def work(self, replica: Replica) -> None:
        """A turn of its engine, which may be its last."""
        said = len(replica.outbox)
        try:
            replica.work()
        except DeviceLost:
            self.die(replica)
            return
        if any(isinstance(m_, m.Failed) and m_.problem.code == "lora_failed" for m_, *_ in list(replica.outbox)[said:]):
            self.reached["mended"] += 1

    def die(self, replica: Replica) -> None:
        """Its process ends."""
        if self.replicas.get(replica.name) is replica:
            del self.replicas[replica.name]
            self.do(self.pool.exited(replica.name, "signal SIGKILL", self.now))

    # What the pool decides

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(peer=peer, message=message):
                    for replica in [r for r in self.replicas.values() if r.peer == peer]:
                        replica.inbox.append(message)
                case Voted(ballot=ballot):
                    self.voting = False
                    self.reached["agreed" if ballot.agreed else "refused" if ballot.refusals else "unheard"] += 1
                    if ballot.agreed:
                        assert self.willing[ballot.epoch], "agreed on by nobody"
                        self.agreed = ballot
                case Finish(job=job, outcome=outcome):
                    self._answered(job, outcome)
                case Kill(worker=worker, reason=reason):
                    assert reason != "digest_mismatch", "nobody here says that it holds what it does not"
                    self.reached["killed"] += 1
                    if replica := self.replicas.get(worker):
                        self.die(replica)

    def _answered(self, job: Job, outcome: Result | ReplicastError) -> None:
        assert job.id not in self.answers, "a job had two answers"
        self.answers[job.id] = outcome
        if not isinstance(outcome, Result):
            return
        _, least = self.jobs[job.id]
        epochs = dict(self.rows)
        assert outcome.epoch in epochs, "made in an epoch that nobody decided"
        assert outcome.epoch >= least, "made with what was over when it was asked for"
        told = _read(bytes(outcome.images[0]))
        state = epochs[outcome.epoch] if job.loras is None else LoraState(adapters=job.loras)
        assert told["epoch"] == outcome.epoch
        assert told["loras"]["mode"] == state.mode
        assert told["loras"]["adapters"] == [[a.sha256, scale, a.target] for a, scale in state.effective()]
        assert outcome.loras == state, "what the answer says that it was made with"
        self.reached["overlays" if job.loras else "pictures"] += 1


def _read(picture: bytes) -> dict[str, Any]:
    """What the stub wrote into the first of its pixels."""
    pixels = picture[len(hollow("png", 64, 64)) :]
    length = int.from_bytes(pixels[:4], "big")
    facts: dict[str, Any] = json.loads(pixels[8 : 8 + length])
    return facts
