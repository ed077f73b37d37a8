"""Pure: whether a job is taken at all, and if not, when it may come again."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.door import Door
from gateway.jobs.job import Job, JobState
from gateway.ledger import Ledger
from gateway.limits import Limits
from gateway.prospects import why
from gateway.workers import State, Worker
from shared.errors import NotReady, QueueFull, UnknownModel

_LEAST_SECONDS, _MOST_SECONDS = 1.0, 60.0


def admit(job: Job, ledger: Ledger, workers: Mapping[str, Worker], door: Door, limits: Limits, now: float) -> None:
    """Pass if the job can be taken now. Raises UnknownModel, NotReady, or QueueFull with how long it would wait."""
    model, backlog = job.model, ledger.backlog
    if model not in backlog:
        raise UnknownModel(f"The model {model!r} does not exist.", param="model")
    if not any(worker.state is State.READY and worker.card(model) for worker in workers.values()):
        raise NotReady(f"No replica of {model!r} is ready: {why(model, workers, door)}.", retry_after_seconds=2)
    if backlog.waiting(model) >= limits.max_queue:
        raise _full(f"The queue of {model!r} is full.", wait_seconds(model, ledger, workers, now))
    if limits.max_queue_per_key and backlog.waiting_of(job.owner) >= limits.max_queue_per_key:
        raise _full("Too many images of this key are waiting.", wait_seconds(model, ledger, workers, now))
    cost = ledger.costs.seconds(model, job.work)
    if _passes(backlog.seconds(model), cost, limits.max_queue_seconds):
        raise _full(f"Too much work for {model!r} is waiting.", wait_seconds(model, ledger, workers, now))
    if _passes(backlog.seconds_of(job.owner), cost, limits.max_queue_seconds_per_key):
        raise _full("Too much work of this key is waiting.", wait_seconds(model, ledger, workers, now))
    # What would expire before its turn is refused now, while the client can still do something else: but on no guess.
    if (
        backlog.waiting(model)
        and ledger.costs.knows(model)
        and (wait := wait_seconds(model, ledger, workers, now)) > job.deadline - now
    ):
        raise _full(f"The queue of {model!r} is longer than the request's timeout.", wait)


def _passes(waiting_seconds: float, cost_seconds: float, most_seconds: float) -> bool:
    """Whether this work is more than may wait beside what waits: where nothing does, any is taken."""
    return 0.0 < most_seconds < waiting_seconds + cost_seconds and waiting_seconds > 0.0


def wait_seconds(model: str, ledger: Ledger, workers: Mapping[str, Worker], now: float) -> float:
    """When a device would be free for what came now, behind all others: what waits and what is left of what runs."""
    return _shared(ledger.backlog.seconds(model), model, workers, now)


def eta_seconds(job: Job, ledger: Ledger, workers: Mapping[str, Worker], now: float) -> float:
    """When the picture of this job, which is not over, may be there: what is before it, and its own making."""
    if job.state is not JobState.QUEUED:
        return _left(job, now)
    _, seconds = ledger.backlog.ahead_of(job)
    return _shared(seconds, job.model, workers, now) + job.cost_seconds


def _shared(waiting_seconds: float, model: str, workers: Mapping[str, Worker], now: float) -> float:
    """How long all devices that hold the model are busy with what they have in hand and so much that waits."""
    holders = [worker for worker in workers.values() if worker.card(model)]
    in_hand = sum(_left(job, now) for worker in holders for job in worker.jobs.values())
    return (waiting_seconds + in_hand) / max(1, len(holders))


def _left(job: Job, now: float) -> float:
    """How long a job in hand will keep its device yet."""
    return max(0.0, job.cost_seconds - (now - job.began if job.started else 0.0))


def _full(message: str, wait: float) -> QueueFull:
    return QueueFull(message, retry_after_seconds=min(_MOST_SECONDS, max(_LEAST_SECONDS, wait)))
