"""The jobs that wait, one queue per model: by priority, and among equals by age."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator

from gateway.jobs.job import Job


class Backlog:
    """Queues for these models, and no others."""

    def __init__(self, models: Iterable[str]) -> None:
        self._queues: dict[str, deque[Job]] = {model: deque() for model in models}

    def __contains__(self, model: str) -> bool:
        return model in self._queues

    def __iter__(self) -> Iterator[tuple[str, deque[Job]]]:
        return iter(self._queues.items())

    def waiting(self, model: str) -> int:
        """How many jobs wait for this model."""
        return len(self._queues[model])

    def add(self, job: Job) -> None:
        """Put a job in its place: one that lost its worker comes before all that were submitted after it."""
        queue = self._queues[job.model]
        if not queue or _order(queue[-1]) <= _order(job):
            queue.append(job)
        else:
            insort(queue, job, key=_order)

    def remove(self, job: Job) -> None:
        """Take out a job that nobody waits for."""
        self._queues[job.model].remove(job)

    def keep(self, models: Iterable[str]) -> list[Job]:
        """Have queues for these models from now on; returns the jobs of those that are gone."""
        kept = {model: self._queues.pop(model, deque()) for model in models}
        gone = [job for queue in self._queues.values() for job in queue]
        self._queues = kept
        return gone


def _order(job: Job) -> tuple[int, float]:
    return -job.priority, job.submitted
