"""Every decision: who works, who waits, who gets what, who is gone.

There is no socket, no task, no clock and no await in here. Events go in as method calls, each with the moment it
happened (monotonic seconds); what is to be done comes out as actions, in order. A peer can be wrong or hostile: its
messages are answered, dropped or end its session, and never make the pool raise. An illegal move of our own does.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway import turns
from gateway.actions import Action, Event
from gateway.admission import admit
from gateway.ballots import Ballots
from gateway.causes import Cause, Death
from gateway.door import Door
from gateway.jobs.job import Job
from gateway.ledger import Ledger
from gateway.limits import Limits
from gateway.outbox import Outbox
from gateway.vigil import load_is_due, verdict
from gateway.workers import State, Worker
from shared import messages as m
from shared.errors import Cancelled, Draining, Expired, ReplicastError
from shared.loras import LoraState
from shared.wire import Buffer, Packet


class Pool:
    """The one owner of workers and waiting jobs. `term` numbers the starts of this gateway."""

    def __init__(self, models: Iterable[m.WantedModel], limits: Limits, *, term: int, shelf: str = "") -> None:
        self.limits = limits
        self.wanted = m.Wanted(version=1, models=tuple(models), shelf=shelf)
        self.workers: dict[str, Worker] = {}
        self.draining = False
        self._term = term
        self._peers: dict[bytes, Worker] = {}
        self._door = Door()
        self._sessions = 0
        self._out = Outbox(term)
        self._ballots = Ballots(self._out)
        self.ledger = Ledger((model.id for model in self.wanted.models), self._out)

    @property
    def jobs(self) -> dict[str, Job]:
        """The accepted jobs that are not over, by id."""
        return self.ledger.jobs

    # Events from those who want pictures

    def submit(self, job: Job, now: float) -> list[Action]:
        """Take a job. Raises UnknownModel, Draining, NotReady or QueueFull, and then has not taken it."""
        if self.draining:
            raise Draining("The server is shutting down.", retry_after_seconds=5)
        admit(job, self.ledger, self.workers, self._door, self.limits, now)
        self.ledger.take(job, now)
        return self._settle(now)

    def cancel(self, job_id: str, now: float) -> list[Action]:
        """Nobody waits for this job: it leaves the queue at once, or stops at its next step."""
        if job := self.jobs.get(job_id):
            self._abandon(job, Cancelled("The client went away."))
        return self._settle(now)

    def drain(self, now: float) -> list[Action]:
        """Take no new jobs; what was taken is finished."""
        self.draining = True
        return self._settle(now)

    def abandon(self, now: float) -> list[Action]:
        """No time is left: every job that was taken is answered."""
        for job in list(self.jobs.values()):
            self._abandon(job, Draining("The server is shutting down.", retry_after_seconds=5))
        return self._settle(now)

    # Events from those who keep workers

    def expect(self, name: str, token: str, now: float) -> list[Action]:
        """A worker of this name is being started and will show this token."""
        self._door.expect(name, token)
        return self._settle(now)

    def exited(self, name: str, reason: str, now: float) -> list[Action]:
        """The process of this worker has ended; it will be started again unless `given_up` says otherwise."""
        self._door.close(name)
        if worker := self.workers.get(name):
            # One that was told to leave, and was not given the time, is not what its work has killed.
            self._lose(worker, "ended", reason, fault=worker.state is not State.DRAINING)
        return self._settle(now)

    def retire(self, name: str, now: float) -> list[Action]:
        """Give this worker nothing more: it finishes what it has and leaves."""
        worker = self.workers.get(name)
        if worker and worker.state is not State.DRAINING:
            worker.move(State.DRAINING)
            self._out.send(worker, m.Drain(reason="dismissed"))
        return self._settle(now)

    def dismissed(self, name: str, now: float) -> list[Action]:
        """Nobody of this name will come again."""
        self._door.forget(name)
        return self._settle(now)

    def given_up(self, name: str, reason: str, now: float) -> list[Action]:
        """This worker will not be started again for a while; if none is left to hope for, nobody waits for it."""
        self._door.give_up(name, reason)
        return self._settle(now)

    def want(self, models: Iterable[m.WantedModel], now: float) -> list[Action]:
        """The wanted state is now this, for every worker."""
        version = self.wanted.version + 1
        self.wanted = self.wanted.model_copy(update={"version": version, "models": tuple(models)})
        self.ledger.keep(model.id for model in self.wanted.models)
        turns.unpin(self.ledger, self.wanted)
        for worker in self.workers.values():
            worker.applying_ticks = 0
            self._out.send(worker, m.Want(wanted=self.wanted))
        return self._settle(now)

    def propose(self, model: str, epoch: int, loras: LoraState, now: float) -> list[Action]:
        """Ask the replicas of this model whether they could have this state; Voted tells what they said."""
        self._ballots.open(model, epoch, loras, self.workers.values(), self.limits)
        return self._settle(now)

    def decide(self, model: str, epoch: int, loras: LoraState, now: float) -> list[Action]:
        """It is decided, and durable: from now on no job of this model starts with another LoRA state."""
        update = {"epoch": epoch, "loras": loras}
        return self.want((w.model_copy(update=update) if w.id == model else w for w in self.wanted.models), now)

    def tick(self, now: float, *, punctual: bool = True) -> list[Action]:
        """`ping_seconds` have passed. Not `punctual`: we ourselves were held up, and nobody is blamed for silence."""
        for job in [job for job in self.jobs.values() if job.deadline <= now]:
            self._abandon(job, Expired("The request took longer than its timeout."))
        for name in self._door.overdue(self.limits.hello_seconds / self.limits.ping_seconds):
            self._out.kill(name, "no_hello")
        self._ballots.tick(self.limits.prepare_seconds / self.limits.ping_seconds)
        for worker in list(self.workers.values()):
            reason = verdict(worker, self.wanted.version, punctual, self.limits, self.ledger.costs)
            if reason == "still":
                self._ask(worker)
            elif reason:
                self._condemn(worker, reason)
                continue
            if load_is_due(worker, self.limits):
                self._out.send(worker, m.Want(wanted=self.wanted))
            worker.heard = False
            worker.pings += 1
            self._out.send(worker, m.Ping(count=worker.pings))
        return self._settle(now)

    # Events from the wire

    def received(self, peer: bytes, packet: Packet, now: float) -> list[Action]:
        """A packet from a peer, who may be anybody."""
        message, stamp = packet.message, packet.stamp
        if isinstance(message, m.Hello):
            self._introduced(peer, message, stamp.seq)
            return self._settle(now)
        worker = self._peers.get(peer)
        if worker is None or stamp.session != worker.session:
            self._out.note("stranger_message", type=type(message).__name__)
        elif stamp.seq <= worker.seq:
            self._out.note("replayed_message", worker=worker.name, type=type(message).__name__)
        elif not worker.may_say(message):
            self._out.note("illegal_message", worker=worker.name, type=type(message).__name__)
            self._condemn(worker, "illegal_message")
        else:
            worker.seq, worker.heard, worker.missed, worker.heard_at = stamp.seq, True, 0, now
            self._heard(worker, message, packet.attachments, now)
        return self._settle(now)

    def garbage(self, peer: bytes, problem: str, now: float) -> list[Action]:
        """Frames from a peer that are no message."""
        self._out.note("wire_error", problem=problem)
        if worker := self._peers.get(peer):
            self._condemn(worker, "wire_error")
        return self._settle(now)

    def undeliverable(self, peer: bytes, reason: str, now: float) -> list[Action]:
        """A message could not be handed to this peer: it is gone, or does not read."""
        worker = self._peers.get(peer)
        if worker and reason == "unreachable":
            # Its process has ended, or it is dialling anew: either is about to be told. Until then it gets no work.
            worker.missed, worker.heard = max(worker.missed, self.limits.suspect_after), False
        elif worker:
            self._condemn(worker, "undeliverable")
        return self._settle(now)

    def _introduced(self, peer: bytes, hello: m.Hello, seq: int) -> None:
        if refusal := self._door.refusal(hello):
            self._out.note("worker_rejected", worker=hello.name[:64], code=refusal[0])
            self._out.reject(peer, *refusal)
            return
        known = self.workers.get(hello.name)
        if known and known.incarnation == hello.incarnation and seq <= known.seq:
            # From a connection that it has given up since: a Hello that waited while we were held up.
            self._out.note("replayed_message", worker=hello.name, type="Hello")
            return
        kept = known.hand_over(hello) if known else {}
        # The newer life of a name wins, and a connection has one session.
        for old in dict.fromkeys((self._peers.get(peer), known)):
            if old is not None:
                if old.peer != peer:
                    self._out.send(old, m.Bye(reason="superseded"))
                self._lose(old, "superseded")
        self._sessions += 1
        worker = Worker.from_hello(peer, f"{self._term}-{self._sessions}", hello, seq, kept)
        self.workers[worker.name] = self._peers[peer] = worker
        welcome = m.Welcome(session=worker.session, wanted=self.wanted, ping_seconds=self.limits.ping_seconds)
        self._out.send(worker, welcome)
        for held in hello.running:
            if held.job not in kept or kept[held.job].over:
                # It is somebody else's by now, or nobody waits; what was told in a former session proves nothing.
                self._out.send(worker, m.Cancel(job=held.job, attempt=held.attempt))
        self._out.note("worker_joined", worker=worker.name, pid=worker.pid, session=worker.session)

    def _heard(self, worker: Worker, message: m.Message, attachments: tuple[Buffer, ...], now: float) -> None:
        match message:
            case m.Ack():
                self._acknowledged(worker, message)
            case m.Prepared():
                if not self._ballots.hear(worker, message):
                    self._condemn(worker, "digest_mismatch")
            case m.Pong():
                worker.counted(message, now)
            case m.Progress():
                if job := self._running(worker, message):
                    self._progressed(worker, job, message, attachments, now)
            case m.Done():
                if job := self._running(worker, message):
                    self._done(worker, job, message, attachments, now)
            case m.Failed():
                if job := self._running(worker, message):
                    self._failed(worker, job, message)
            case m.Drain():
                if worker.state is not State.DRAINING:
                    worker.move(State.DRAINING)
            case m.Bye():
                self._lose(worker, "left", f"bye: {message.reason}"[:100])

    def _acknowledged(self, worker: Worker, ack: m.Ack) -> None:
        loading = worker.state is State.LOADING
        if wrong := worker.acknowledge(ack, self.wanted):
            self._condemn(worker, wrong)
        elif worker.version == self.wanted.version:
            event: Event = "worker_ready" if loading and worker.state is State.READY else "worker_in_step"
            self._out.note(event, worker=worker.name, models=sum(1 for o in ack.outcomes if o.card))

    def _running(self, worker: Worker, message: m.Progress | m.Done | m.Failed) -> Job | None:
        """The job this worker speaks of, if it is its current attempt; results of any other are stale."""
        job = worker.jobs.get(message.job)
        if job is None or job.attempt != message.attempt:
            self._out.note("stale_result", worker=worker.name, type=type(message).__name__)
            return None
        return job

    def _progressed(
        self, worker: Worker, job: Job, progress: m.Progress, images: tuple[Buffer, ...], now: float
    ) -> None:
        if not job.shows(progress, images):
            self._distrust(worker, job)
            return
        job.hear(progress, now)
        if progress.preview is not None and not job.over:
            self._out.show(job, progress.preview, images[0])

    def _done(self, worker: Worker, job: Job, done: m.Done, images: tuple[Buffer, ...], now: float) -> None:
        if not job.accepts(done, images):
            self._distrust(worker, job)
            return
        del worker.jobs[job.id]
        worker.served += 1
        if job.over:
            self.ledger.waste(job, "cancelled")
            return
        self.ledger.finish(job, job.result(worker.name, images, done))

    def _failed(self, worker: Worker, job: Job, failed: m.Failed) -> None:
        del worker.jobs[job.id]
        if job.over:
            self.ledger.waste(job, "cancelled")
            return
        if failed.problem.code == "behind":
            # It costs the job nothing. That of an older state was overtaken by the new one; else it is the worker's own
            # word that it is not in step, and it gets the whole state again.
            if any((job.model, job.epoch, job.digest) == (w.id, w.epoch, w.digest) for w in self.wanted.models):
                worker.version = -1
                self._out.send(worker, m.Want(wanted=self.wanted))
            self.ledger.requeue(job, "behind")
        elif failed.problem.code == "cancelled":
            # Somebody waits for it, so it was we who called it off, for showing no step: by now it may have made one.
            self.ledger.again(job, "stuck", self.limits, blamed=True)
        elif job.batch:
            # One bad member fails a call for all: each is run again by itself, and then it is known which.
            job.alone = True
            self.ledger.again(job, "batch_failed", self.limits, blamed=False)
        else:
            self.ledger.finish(job, failed.problem.error())

    # What follows from events

    def _condemn(self, worker: Worker, reason: Death) -> None:
        at_work = bool(worker.jobs)
        self._lose(worker, reason, fault=True)
        self._out.kill(worker.name, reason, at_work=at_work)

    def _distrust(self, worker: Worker, job: Job) -> None:
        self._out.note("bad_result", job, worker=worker.name)
        self._condemn(worker, "bad_result")

    def _lose(self, worker: Worker, cause: Cause, said: str = "", *, fault: bool = False) -> None:
        """The session is over: what was started is run again within its attempts, the rest goes back to the head.

        With `fault` the worker died or misbehaved, and that is counted against what it was running. It may have died
        before it could say what that was: then it is the job that was first in its hands.
        """
        worker.move(State.GONE)
        self._peers.pop(worker.peer, None)
        self.workers.pop(worker.name, None)
        self._ballots.lose(worker)
        running = worker.running()
        jobs = [job for job in worker.jobs.values() if not job.over]
        for job in worker.jobs.values():
            if job.over:
                self.ledger.waste(job, "cancelled")
        worker.jobs = {}
        for job in jobs:
            self.ledger.again(job, cause, self.limits, blamed=fault and job in running)
        self._out.note("worker_lost", worker=worker.name, reason=said or cause, jobs=len(jobs))

    def _ask(self, worker: Worker) -> None:
        """Its device makes no step: what it runs is called off, and only if that changes nothing is it killed."""
        worker.asked = True
        self._out.note("worker_asked", worker=worker.name)
        for job in worker.running():
            self._out.send(worker, m.Cancel(job=job.id, attempt=job.attempt))

    def _abandon(self, job: Job, reason: ReplicastError) -> None:
        self.ledger.abandon(job, reason, self.workers.get(job.worker))

    def _settle(self, now: float) -> list[Action]:
        """Hand out what can be handed out, and return everything that has been decided."""
        self._ballots.count()
        turns.hand_out(self.ledger, self.workers.values(), self.wanted, self.limits, self._out, now)
        turns.dash_hopes(self.ledger, self.workers, self._door, self.wanted.version)
        return self._out.take()
