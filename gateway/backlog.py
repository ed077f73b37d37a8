"""The jobs that wait, in order, one queue per model."""

from __future__ import annotations

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
        """Put a new job at the end of its queue."""
        self._queues[job.model].append(job)

    def give_back(self, job: Job) -> None:
        """Put a job that lost its worker before all that were submitted after it."""
        queue = self._queues[job.model]
        before = next((at for at, other in enumerate(queue) if other.submitted > job.submitted), len(queue))
        queue.insert(before, job)

    def remove(self, job: Job) -> None:
        """Take out a job that nobody waits for."""
        self._queues[job.model].remove(job)

    def keep(self, models: Iterable[str]) -> list[Job]:
        """Have queues for these models from now on; returns the jobs of those that are gone."""
        kept = {model: self._queues.pop(model, deque()) for model in models}
        gone = [job for queue in self._queues.values() for job in queue]
        self._queues = kept
        return gone
