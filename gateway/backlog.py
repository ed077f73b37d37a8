"""The jobs that wait, one queue per model, in the order in which they are due.

Who asks for much waits behind who asks for little, by start-time fair queueing (Goyal, Vin, Cheng 1996): time is what
has been served, in device seconds, and a job is due at the time of its arrival or, if that is later, when all that its
owner asked for before would have been served. Among equals the first come is the first served. Priority is time too:
each step of it is worth PRIORITY_SECONDS of others' work, so that nothing waits for ever behind what matters more.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from gateway.jobs.job import Job

PRIORITY_SECONDS = 30.0
_MOST_CLOCKS = 100


class Backlog:
    """Queues for these models, and no others."""

    def __init__(self, models: Iterable[str]) -> None:
        self._queues: dict[str, deque[Job]] = {model: deque() for model in models}
        self._time = 0.0
        self._clocks: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        # What each owner has waiting, in seconds of one device; for whom nothing waits there is no entry.
        self._asked: dict[str, float] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._queues

    def __iter__(self) -> Iterator[tuple[str, deque[Job]]]:
        return iter(self._queues.items())

    def queue(self, model: str) -> Sequence[Job]:
        """What waits for this model, in its order."""
        return self._queues[model]

    def waiting(self, model: str) -> int:
        """How many jobs wait for this model."""
        return len(self._queues[model])

    def waiting_of(self, owner: str) -> int:
        """How many jobs of this owner wait."""
        return self._waiting[owner]

    def seconds_of(self, owner: str) -> float:
        """What this owner has waiting, in seconds of one device."""
        return self._asked.get(owner, 0.0)

    def seconds(self, model: str) -> float:
        """What waits for this model, in seconds of one device."""
        return sum(job.cost_seconds for job in self._queues[model])

    def ahead_of(self, job: Job) -> tuple[int, float]:
        """How many jobs are due before this waiting one, and their seconds of one device."""
        before = []
        for other in self._queues[job.model]:
            if other is job:
                break
            before.append(other.cost_seconds)
        return len(before), sum(before)

    def join(self, job: Job) -> None:
        """Put a new job in its place."""
        clock = max(self._time, self._clocks.get(job.owner, 0.0))
        job.due = clock - job.priority * PRIORITY_SECONDS
        self._clocks[job.owner] = clock + job.cost_seconds
        self.add(job)

    def start(self, job: Job) -> None:
        """Take out a job whose turn it is."""
        self._time = max(self._time, job.due + job.priority * PRIORITY_SECONDS)
        self.remove(job)
        if not self._waiting:
            # Nothing waits: what was asked for until now is not held against anybody.
            self._time = max(self._clocks.values(), default=self._time)
        if not self._waiting or len(self._clocks) > _MOST_CLOCKS:
            self._clocks = {owner: clock for owner, clock in self._clocks.items() if clock > self._time}

    def add(self, job: Job) -> None:
        """Put a job in its place: one that lost its worker keeps the one it had."""
        queue = self._queues[job.model]
        self._waiting[job.owner] += 1
        self._asked[job.owner] = self._asked.get(job.owner, 0.0) + job.cost_seconds
        if not queue or order(queue[-1]) <= order(job):
            queue.append(job)
        else:
            insort(queue, job, key=order)

    def remove(self, job: Job) -> None:
        """Take out a job that nobody waits for."""
        queue = self._queues[job.model]
        if queue[0] is job:
            queue.popleft()
        else:
            queue.remove(job)
        self._forget(job)

    def keep(self, models: Iterable[str]) -> list[Job]:
        """Have queues for these models from now on; returns the jobs of those that are gone."""
        kept = {model: self._queues.pop(model, deque()) for model in models}
        gone = [job for queue in self._queues.values() for job in queue]
        self._queues = kept
        for job in gone:
            self._forget(job)
        return gone

    def _forget(self, job: Job) -> None:
        self._waiting[job.owner] -= 1
        self._asked[job.owner] -= job.cost_seconds
        if not self._waiting[job.owner]:
            del self._waiting[job.owner], self._asked[job.owner]


def order(job: Job) -> tuple[float, float]:
    """Who comes first, of whatever model: who is due first, among equals the older."""
    return job.due, job.submitted
