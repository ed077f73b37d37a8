"""Pure choices: which waiting job goes to which worker."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.jobs.job import Job
from gateway.limits import Limits
from gateway.workers import State, Worker

# One job in progress per slot and one handed ahead, so that a device never waits for the wire between two jobs.
AHEAD = 1


def choose(workers: Iterable[Worker], job: Job, version: int, limits: Limits) -> Worker | None:
    """The worker that shall have `job` now, or None if it has to wait.

    Among those in step that hold the model: the one with the fewest jobs in hand, so an idle device always comes before
    handing ahead; among equals the one that has served least, so that they wear evenly. A job that has already cost a
    worker its life runs alone, so that it takes no neighbour's work with it.
    """
    fit = [
        worker
        for worker in workers
        if worker.state is State.READY
        and worker.version == version
        and worker.missed < limits.suspect_after
        and worker.card(job.model) is not None
        and len(worker.jobs) < (worker.slots if job.crashes else worker.slots + AHEAD)
        and not any(other.crashes for other in worker.jobs.values())
    ]
    return min(fit, key=lambda worker: (len(worker.jobs), worker.served, worker.name), default=None)
