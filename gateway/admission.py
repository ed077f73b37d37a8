"""Pure: whether the pool takes a job at all."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.backlog import Backlog
from gateway.door import Door
from gateway.limits import Limits
from gateway.pace import Pace
from gateway.prospects import why
from gateway.workers import State, Worker
from shared.errors import NotReady, QueueFull, UnknownModel


def admit(model: str, backlog: Backlog, workers: Mapping[str, Worker], door: Door, pace: Pace, limits: Limits) -> None:
    """Pass if a job of this model can be taken now. Raises UnknownModel, NotReady or QueueFull."""
    if model not in backlog:
        raise UnknownModel(f"The model {model!r} does not exist.", param="model")
    if not any(worker.state is State.READY and worker.card(model) for worker in workers.values()):
        raise NotReady(f"No replica of {model!r} is ready: {why(model, workers, door)}.", retry_after_seconds=2)
    waiting = backlog.waiting(model)
    if waiting >= limits.max_queue:
        replicas = sum(1 for worker in workers.values() if worker.card(model))
        wait = pace.wait_seconds(model, ahead=waiting, replicas=replicas)
        raise QueueFull(f"The queue of {model!r} is full.", retry_after_seconds=wait)
