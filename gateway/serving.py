"""Carries out what the pool decides: the pool, the hub and the supervisor meet here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway import hub, keeper
from gateway.actions import Action, Event, Finish, Kill, Note, Send, Show, Voted
from gateway.ballots import Ballot
from gateway.hub import Hub
from gateway.jobs.job import Job, Outcome, Result
from gateway.keeper import RestartPolicy, Standing
from gateway.launchers import Launcher, Slot
from gateway.limits import Limits
from gateway.pool import Pool
from gateway.slots import further
from gateway.supervisor import Supervisor
from shared import logs
from shared.errors import ReplicastError
from shared.loras import LoraState
from shared.messages import WantedModel
from shared.wire import Buffer

_WORKER_GRACE_SECONDS = 5.0
_LATE = 0.5

# What an operator wants to hear of even when all else is quiet.
_LEVELS: dict[Event, int] = {
    "bad_result": logging.ERROR,
    "job_poison": logging.ERROR,
    "job_requeued": logging.WARNING,
    "worker_rejected": logging.WARNING,
}

# After these a replica may be where it was not before.
_STIRS = frozenset[Event]({"worker_in_step", "worker_lost", "worker_ready"})

log = logs.get("pool")

# Called with a job, the number of a preview of it, and that preview, encoded. Never raises.
Shown = Callable[[Job, int, Buffer], None]


class Serving:
    """Everything behind the HTTP routes. `taken` is the one way in; `start` and `stop` belong to the app's lifespan.

    `noted` and `ended` are told what happened, and when, in monotonic seconds: they count and trace, and never raise.
    """

    def __init__(
        self,
        models: Iterable[WantedModel],
        slots: Iterable[Slot],
        *,
        possible: Sequence[Slot] = (),
        limits: Limits,
        policy: RestartPolicy,
        term: int,
        socket_folder: Path,
        shelf: Path,
        launcher: Callable[[str], Launcher],
        noted: Callable[[Note, float], None],
        ended: Callable[[Job, Outcome, float], None],
    ) -> None:
        self.pool = Pool(models, limits, term=term, shelf=str(shelf))
        self.hub = Hub(socket_folder)
        self._noted, self._ended = noted, ended
        self._possible = possible
        self._answers: dict[str, asyncio.Future[Outcome]] = {}
        self._shown: dict[str, Shown] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._killed_at_work: set[str] = set()
        self._votes: dict[str, asyncio.Future[Ballot]] = {}
        self._stirred: asyncio.Future[None] | None = None
        ears = keeper.Ears(
            expect=lambda name, token: self._do(self.pool.expect(name, token, time.monotonic())),
            exited=self._exited,
            given_up=self._given_up,
            dismissed=lambda name: self._do(self.pool.dismissed(name, time.monotonic())),
        )
        self.supervisor = Supervisor(launcher(self.hub.endpoint), slots, policy, ears)

    def start(self) -> None:
        """Open the socket and start the workers."""
        self.hub.open()
        ears = hub.Ears(
            received=lambda peer, packet: self._do(self.pool.received(peer, packet, time.monotonic())),
            garbage=lambda peer, problem: self._do(self.pool.garbage(peer, problem, time.monotonic())),
            undeliverable=lambda peer, reason: self._do(self.pool.undeliverable(peer, reason, time.monotonic())),
        )
        self._ears = ears
        self._tasks = [
            asyncio.create_task(self._forever(lambda: self.hub.listen(ears)), name="hub"),
            asyncio.create_task(self._forever(self._tick), name="tick"),
        ]
        self.supervisor.start()

    @contextmanager
    def taken(self, jobs: list[Job], shown: Shown | None = None) -> Iterator[list[asyncio.Future[Outcome]]]:
        """Submit jobs that belong together; their answers, in their order. Whoever leaves withdraws what is not over.

        `shown` is called with each preview. Raises what the pool says if it does not take one: then it takes none.
        """
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Outcome]] = []
        try:
            for job in jobs:
                answer: asyncio.Future[Outcome] = loop.create_future()
                self._answers[job.id] = answer
                if shown is not None:
                    self._shown[job.id] = shown
                answers.append(answer)
                self._do(self.pool.submit(job, time.monotonic()))
            yield answers
        finally:
            self.withdraw(jobs)
            for job in jobs:
                self._answers.pop(job.id, None)
                self._shown.pop(job.id, None)

    def withdraw(self, jobs: Iterable[Job]) -> None:
        """Nobody waits for these: those that are not over end as Cancelled, and stop at their next step."""
        for job in jobs:
            if not job.over:
                self._do(self.pool.cancel(job.id, time.monotonic()))

    def want_worker(self, name: str, standing: Standing, grace_seconds: float) -> None:
        """Have a worker restarted (RUNNING), DRAINED or gone (STOPPED); what it has in hand is finished first.

        KeyError for a name that there is not.
        """
        if name not in self.supervisor.facts:
            raise KeyError(name)
        self._do(self.pool.retire(name, time.monotonic()))
        self.supervisor.want(name, standing, grace_seconds)

    def scale(self, replicas: int, grace_seconds: float) -> None:
        """Have so many workers: new ones where there is room for them, or the last ones dismissed after their work.

        Raises BadInput where there are not enough devices.
        """
        facts = self.supervisor.facts
        present = [name for name, fact in facts.items() if fact.standing is not Standing.STOPPED]
        for slot in further([fact.slot for fact in facts.values()], self._possible, replicas - len(present)):
            self.supervisor.add(slot)
        for name in present[replicas:]:
            self.want_worker(name, Standing.STOPPED, grace_seconds)

    async def vote(self, model: str, epoch: int, loras: LoraState) -> Ballot:
        """What the replicas of this model say to this state: every vote that will come, in bounded time."""
        future: asyncio.Future[Ballot] = asyncio.get_running_loop().create_future()
        self._votes[model] = future
        self._do(self.pool.propose(model, epoch, loras, time.monotonic()))
        return await future

    def decide(self, model: str, epoch: int, loras: LoraState) -> None:
        """From now on this is the model's LoRA state; that it is durable is the caller's affair."""
        self._do(self.pool.decide(model, epoch, loras, time.monotonic()))
        for name, fact in self.supervisor.facts.items():
            if fact.standing is Standing.QUARANTINED and fact.cause == "lora_failed":
                # What it could not follow is over: it need not wait for its time.
                self.want_worker(name, Standing.RUNNING, 0.0)

    async def stirred(self) -> None:
        """Return when a worker has come into step, or one has gone or been given up."""
        if self._stirred is None:
            self._stirred = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._stirred)

    def drain(self) -> None:
        """Take no new jobs."""
        self._do(self.pool.drain(time.monotonic()))

    def abandon(self) -> None:
        """Answer every accepted job now, with the news that the server is going down."""
        self._do(self.pool.abandon(time.monotonic()))

    def hurry(self) -> None:
        """Leave at once: every job is answered, every worker ended."""
        self.abandon()
        self.supervisor.hurry()

    @property
    def idle(self) -> bool:
        """Whether no accepted job is waiting for its answer."""
        return not self.pool.jobs

    async def stop(self) -> None:
        """Dismiss the workers, reap them, close the socket."""
        for name in list(self.pool.workers):
            self._do(self.pool.retire(name, time.monotonic()))
        await self.supervisor.stop(_WORKER_GRACE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.hub.close()

    async def _forever(self, sense: Callable[[], Awaitable[None]]) -> None:
        """Keep one of the server's senses alive: a bug in it is logged and counted, and never leaves us deaf."""
        while True:
            try:
                await sense()
            except Exception:
                self._noted(Note("task_restarted"), time.monotonic())
                log.exception("task_restarted")
                await asyncio.sleep(0.1)

    async def _tick(self) -> None:
        """Tell the pool that time has passed."""
        seconds = self.pool.limits.ping_seconds
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(seconds)
            now = time.monotonic()
            self._do(self.pool.tick(now, punctual=now - asleep < seconds * (1 + _LATE)))

    def _stir(self) -> None:
        if self._stirred is not None:
            self._stirred.set_result(None)
            self._stirred = None

    def _given_up(self, name: str, reason: str) -> None:
        self._do(self.pool.given_up(name, reason, time.monotonic()))
        self._stir()

    def _exited(self, name: str, reason: str) -> bool:
        worker = self.pool.workers.get(name)
        # One that was condemned is not in the pool any more: whether it had work was known then.
        at_work = name in self._killed_at_work or (worker is not None and bool(worker.jobs))
        self._killed_at_work.discard(name)
        self._do(self.pool.exited(name, reason, time.monotonic()))
        return at_work

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    problem = self.hub.send(action.peer, action.message, action.stamp, action.attachments)
                    if problem is not None:
                        log.warning("undeliverable", type=type(action.message).__name__, problem=problem)
                        # Not from here: the pool has decided more, and that comes first.
                        asyncio.get_running_loop().call_soon(self._ears.undeliverable, action.peer, problem)
                case Finish():
                    answer = self._answers.get(action.job.id)
                    if answer is not None and not answer.done():
                        answer.set_result(action.outcome)
                    self._ended(action.job, action.outcome, time.monotonic())
                case Show():
                    if shown := self._shown.get(action.job.id):
                        shown(action.job, action.preview, action.image)
                case Kill():
                    self._noted(Note("worker_killed"), time.monotonic())
                    log.error("worker_killed", worker=action.worker, reason=action.reason)
                    if action.at_work:
                        self._killed_at_work.add(action.worker)
                    self.supervisor.kill(action.worker, action.reason)
                case Voted():
                    vote = self._votes.pop(action.ballot.model, None)
                    if vote is not None and not vote.done():
                        vote.set_result(action.ballot)
                case Note():
                    if action.event in _STIRS:
                        self._stir()
                    now = time.monotonic()
                    self._noted(action, now)
                    lasted = {} if action.since is None else {"seconds": round(now - action.since, 3)}
                    log.log(_LEVELS.get(action.event, logging.INFO), action.event, **action.fields, **lasted)


async def wait_for_all(answers: list[asyncio.Future[Outcome]]) -> list[Result]:
    """The results of jobs that belong together, in their order. Raises the first failure among them."""
    for outcome in asyncio.as_completed(answers) if len(answers) > 1 else answers:
        if isinstance(got := await outcome, ReplicastError):
            raise got
    return [answer.result() for answer in answers]  # type: ignore[misc]
