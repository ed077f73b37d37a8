"""A world that keeps its own account: what the pool decides is held, action by action, against what all others know.

The account follows from what was said and sent alone; the pool is never asked why it does what it does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway.actions import Action, Finish, Kill, Note, Send, Show
from gateway.jobs.job import Job, Result
from gateway.limits import Limits
from shared import errors
from shared import messages as m
from tests.unit.sessions import SLOTS, Hand, Session, picture
from tests.unit.world import Puppet, World


class Witness(World):
    """The pool, everybody around it, and somebody who watches."""

    def __init__(self, *, limits: Limits, models: tuple[m.WantedModel, ...]) -> None:
        super().__init__(limits=limits, models=models)
        self.limits = limits
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[bytes, Session] = {}
        self.tokens: dict[str, str | None] = {}
        self.deaths: Counter[str] = Counter()
        self.left: set[str] = set()
        self.newcomers: dict[str, Counter[str]] = {}
        self.told: set[tuple[str, str, int]] = set()
        self._excuses: set[str] = set()
        self._handed: set[tuple[str, int]] = set()
        self._owners: set[str] = set()
        self._plain = True
        self._kept: dict[str, Hand] = {}
        self._owing: set[tuple[str, int]] = set()
        self._moving = ""
        self._gone = ("", False)
        self._said: m.Message | None = None

    # What is known

    @property
    def version(self) -> int:
        return self.pool.wanted.version

    def waiting(self, model: str | None = None) -> list[Job]:
        """The accepted jobs that are in nobody's hands and not over."""
        held = {name for session in self.sessions.values() for name in session.hands}
        return [
            job
            for job in self.jobs.values()
            if job.id not in held and job.id not in self.outcomes and model in (None, job.model)
        ]

    def session_of(self, name: str) -> Session | None:
        return next((session for session in self.sessions.values() if session.puppet.name == name), None)

    def serves(self, model: str) -> bool:
        """Whether somebody is ready to draw with this model, in step or not."""
        return any(session.serves(model) for session in self.sessions.values())

    def fits(self, session: Session, job: Job) -> bool:
        """Whether this worker may be handed this job now."""
        alone = self.deaths[job.id] > 0
        beside = any(self.deaths[name] for name in session.hands)
        return session.has_room(job.model, self.version, self.limits, alone=alone) and not beside

    def hope(self, model: str) -> bool:
        """Whether somebody holds this model, may come to hold it, or is on the way."""
        sessions = self.sessions.values()
        awaited = self.tokens.keys() - {session.puppet.name for session in sessions}
        return bool(awaited) or any(model in s.holds or s.acked != self.version for s in sessions)

    # What others do

    @contextmanager
    def excusing(self, *reasons: str) -> Iterator[None]:
        """While this lasts, a worker may be given up for these reasons."""
        before, self._excuses = self._excuses, self._excuses | set(reasons)
        try:
            yield
        finally:
            self._excuses = before

    def ask(self, model: str, owner: str, priority: int, patience: float, **more: Any) -> Job:
        """Submit a job of an owner; what is refused has to have a reason, and passes through."""
        before, mine = self.waiting(model), [job for job in self.waiting() if job.owner == owner]
        deadline = self.now + patience
        job = self.job(model, seed=len(self.jobs) + 1, deadline=deadline, owner=owner, priority=priority, **more)
        self._plain &= priority == 0 and model == "stub"
        self.jobs[job.id] = job
        if owner not in self._owners and self._plain:
            self.newcomers[job.id] = Counter()
        try:
            self.do(self.pool.submit(job, self.now))
        except errors.ReplicastError as refusal:
            del self.jobs[job.id]
            known = model in [wanted.id for wanted in self.pool.wanted.models]
            reasons = {
                "draining": self.pool.draining,
                "model_not_found": not known,
                "not_ready": not self.serves(model),
            }
            if not reasons.get(refusal.code, before or mine):
                raise AssertionError("refused without a reason") from refusal
            raise
        assert self.serves(model)
        assert not self.pool.draining
        assert len(before) < self.limits.max_queue
        assert len(mine) < self.limits.max_queue_per_key
        self._owners.add(owner)
        return job

    def leave(self, job: Job) -> None:
        """Its client is gone."""
        self.left.add(job.id)
        self.do(self.pool.cancel(job.id, self.now))
        assert job.id in self.outcomes

    def want(self, models: list[m.WantedModel]) -> None:
        """The wanted state moves; there is as much time to load it as there was for the last one."""
        for session in self.sessions.values():
            session.applying = 0
        self.do(self.pool.want(models, self.now))

    def hello(
        self,
        puppet: Puppet,
        *,
        token: str | None = None,
        protocol: int = m.PROTOCOL,
        running: tuple[m.Run, ...] = (),
    ) -> None:
        if puppet.seq == 0:
            self.tokens[puppet.name] = puppet.token
        known = self.session_of(puppet.name)
        self._owing, self._kept = {(run.job, run.attempt) for run in running}, {}
        if known and known.puppet is puppet:
            self._kept = {job: hand for job, hand in known.hands.items() if (job, hand.run.attempt) in self._owing}
        before, due = puppet.session, self.tokens.get(puppet.name) == (token or puppet.token)
        with self.excusing(*(["superseded"] if due else [])):
            super().hello(puppet, token=token, protocol=protocol, running=running)
        assert (puppet.session != before) == due, "who may come in, and who may not"

    def say(self, puppet: Puppet, message: m.Message, attachments: tuple[bytes, ...] = ()) -> None:
        session = self.sessions.get(puppet.peer)
        self._said = None
        if isinstance(message, m.Done | m.Failed):
            self.told.add((puppet.incarnation, message.job, message.attempt))
        if session is not None and session.id == puppet.session:
            session.listen(message, self.version)
            if isinstance(message, m.Progress | m.Done | m.Failed) and (hand := session.hand_of(message, attachments)):
                self._said = message
                if isinstance(message, m.Failed) and message.job not in self.outcomes:
                    if message.problem.code == "behind" and self.is_of_now(hand.run):
                        session.acked = -1
                    elif message.problem.code == "cancelled":
                        self.deaths[message.job] += 1
        super().say(puppet, message, attachments)
        self._said = None

    def is_of_now(self, run: m.Run) -> bool:
        """Whether a run is for the state that is wanted now, and was not overtaken by a newer one."""
        return (run.model, run.epoch, run.digest) in [(w.id, w.epoch, w.digest) for w in self.pool.wanted.models]

    def die(self, puppet: Puppet) -> None:
        self.tokens[puppet.name] = None
        with self.excusing("signal SIGKILL"):
            super().die(puppet)
        assert self.session_of(puppet.name) is None

    def give_up(self, name: str) -> None:
        """Nobody of this name will come for a while."""
        self.tokens.pop(name, None)
        self.do(self.pool.given_up(name, "crash loop", self.now))

    def tick(
        self, times: int = 1, *, hearing: tuple[Puppet, ...] = (), punctual: bool = True, moving: bool = False
    ) -> None:
        for _ in range(times):
            for session in self.sessions.values():
                session.pass_tick(self.version, punctual)
            self.now += self.limits.ping_seconds
            self.do(self.pool.tick(self.now, punctual=punctual))
            assert all(job.deadline > self.now or job.id in self.outcomes for job in self.jobs.values())
            for session in self.sessions.values():
                assert not session.ails(self.version, self.limits), "it had to go, and is still here"
                assert session.asked >= 0 or not session.stands_still(self.limits), "nobody has asked it"
            for puppet in hearing:
                known = self.sessions.get(puppet.peer)
                steps = known.steps + moving if known else 0
                self.say(puppet, m.Pong(count=1, steps=steps, memory_bytes=0))

    # What the pool does

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            super().do([action])
            match action:
                case Send(peer=peer, message=m.Welcome() as welcome):
                    owed = dict.fromkeys(self._owing, False)
                    self.sessions[peer] = Session(self.puppets[peer], welcome.session, self._kept, owed)
                case Send(peer=peer, message=m.Run() as run):
                    self._handed_out(self.sessions[peer], run, action.attachments)
                case Send(peer=peer, message=m.Cancel() as cancel):
                    assert (cancel.job, cancel.attempt) in self.sessions[peer].owed, "it does not have that"
                    self.sessions[peer].owed[cancel.job, cancel.attempt] = True
                case Finish(job=job):
                    self._answered(job, action.outcome)
                case Show():
                    self._shown(action)
                case Kill():
                    assert (action.worker, action.at_work) == self._gone, "whether its work is charged with its end"
                case Note(event="worker_lost"):
                    self._lost(str(action.fields["worker"]), str(action.fields["reason"]))
                case Note(event="job_taken_back"):
                    self._taken_back(str(action.fields["job"]), str(action.fields["worker"]))
                case Note(event="worker_asked"):
                    asked = self.session_of(str(action.fields["worker"]))
                    assert asked
                    assert asked.stands_still(self.limits), "asked too early"
                    assert asked.asked < 0, "asked twice"
                    asked.asked = 0

    def _handed_out(self, session: Session, run: m.Run, attachments: tuple[Any, ...]) -> None:
        job = self.jobs[run.job]
        assert job in self.waiting(), "it is over, or in other hands"
        assert (job.id, run.attempt) not in self._handed, "an attempt was handed out twice"
        assert self.fits(session, job), "who may have it, and who may not"
        others = [len(other.hands) for other in self.sessions.values() if self.fits(other, job)]
        assert len(session.hands) == min(others), "somebody else has less to do"
        wanted = {model.id: model for model in self.pool.wanted.models}[job.model]
        assert (run.model, run.epoch, run.digest) == (wanted.id, wanted.epoch, wanted.digest)
        assert (run.seeds, run.parameters, run.previews) == (job.seeds, job.parameters, job.previews)
        assert attachments == job.inputs, "its pictures go with every attempt"
        if job.id != self._moving:
            self._expect_turn(job, run.attempt)
        self._moving = ""
        self._handed.add((job.id, run.attempt))
        session.hands[job.id] = Hand(run)
        session.owed[job.id, run.attempt] = False

    def _expect_turn(self, job: Job, attempt: int) -> None:
        """Nobody is passed over. All work here is seconds at most, so that priority always comes before the owner."""
        self.newcomers.pop(job.id, None)
        for other in self.waiting(job.model):
            assert other.priority <= job.priority, "more important"
            if (other.owner, other.priority) == (job.owner, job.priority):
                assert job.submitted <= other.submitted, "of one owner, the first come is the first served"
            if other.id in self.newcomers and other.priority == job.priority and attempt == 1:
                self.newcomers[other.id][job.owner] += 1
                assert self.newcomers[other.id][job.owner] <= 1, "a newcomer waits behind a flood"
        for model in {other.model for other in self.waiting()} - {job.model}:
            heads = self.waiting(model)
            alike = all((other.owner, other.priority) == (job.owner, job.priority) for other in heads)
            if alike and all(other.submitted < job.submitted for other in heads):
                able = all(any(self.fits(s, other) for s in self.sessions.values()) for other in heads)
                assert not able, "a busy model starves another"

    def _taken_back(self, job: str, name: str) -> None:
        holder = self.session_of(name)
        assert holder
        assert list(holder.hands).index(job) >= SLOTS
        assert not holder.hands.pop(job).begun, "it had begun"
        self._moving = job

    def _shown(self, show: Show) -> None:
        said, job = self._said, show.job
        assert isinstance(said, m.Progress), "a preview from nowhere"
        assert (said.job, said.attempt, said.preview) == (job.id, job.attempt, show.preview)
        assert job.id not in self.outcomes, "a preview of what is over"
        assert bytes(show.image) == picture(job.seeds[0])

    def _answered(self, job: Job, outcome: Result | errors.ReplicastError) -> None:
        match outcome:
            case Result():
                assert isinstance(self._said, m.Done), "a picture from nowhere"
                assert (self._said.job, self._said.attempt) == (job.id, outcome.attempts)
                assert [bytes(image) for image in outcome.images] == [picture(job.seeds[0])]
            case errors.Poison():
                pass  # deaths are compared when all of this event is known
            case errors.Expired():
                assert job.deadline <= self.now
            case errors.UnknownModel():
                assert job.model not in [model.id for model in self.pool.wanted.models]
            case errors.Draining():
                assert self.pool.draining
            case errors.NotReady():
                assert not self.hope(job.model), "there was hope"
            case _:
                assert isinstance(self._said, m.Failed) or job.id in self.left, "a failure from nowhere"

    def _lost(self, name: str, reason: str) -> None:
        session = self.session_of(name)
        assert session, "it was gone before"
        assert reason in self._excuses | session.ails(self.version, self.limits), f"no reason to lose it: {reason}"
        # One that was to leave and was not given the time has not died of its work.
        told_to = session.draining and reason.startswith("signal")
        if reason != "superseded" and not reason.startswith("bye") and not told_to:
            for hand in session.running():
                # What this very death has ended comes before the news of it.
                ended = self.outcomes.get(hand.run.job)
                self.deaths[hand.run.job] += ended is None or isinstance(ended, errors.Poison | errors.UnknownModel)
        self._gone = (name, bool(session.hands))
        del self.sessions[session.puppet.peer]
