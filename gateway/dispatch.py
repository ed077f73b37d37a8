"""Pure choices: which waiting job goes to which worker, and which is taken back for one that has nothing to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gateway.backlog import Backlog, order
from gateway.costs import Costs
from gateway.jobs.job import Job
from gateway.limits import Limits
from gateway.workers import State, Worker

# One job in progress per slot and one handed ahead, so that a device never waits for the wire between two jobs.
AHEAD = 1


def hand_out(
    backlog: Backlog, workers: Collection[Worker], version: int, limits: Limits, costs: Costs
) -> tuple[list[Job], Worker] | None:
    """The next jobs to hand out together, nearly always one, and to whom; None if what waits has to wait.

    Queues are served as if their first jobs stood in one, so that a busy model starves no other.
    """
    heads = sorted((queue[0] for _, queue in backlog if queue), key=order)
    for job in heads:
        if worker := _choose(workers, job, version, limits):
            idle = sum(not other.jobs and _fits(other, job, version, limits) for other in workers)
            return _company(job, worker, backlog.queue(job.model), max(1, idle), limits, costs), worker
    return None


def _company(job: Job, worker: Worker, queue: Iterable[Job], idle: int, limits: Limits, costs: Costs) -> list[Job]:
    """The job and those that are made in one call with it: of what waits already, nobody is waited for.

    An idle worker's share and no more, so that no device stands still while another makes a batch.
    """
    most = _batch(worker, job, limits)
    if most == 1 or worker.jobs:
        return [job]
    alike = [other for other in queue if other.signature == job.signature and _batch(worker, other, limits) > 1]
    count = min(most, -(-len(alike) // idle))
    while count > 1 and not costs.pays(job.model, job.work, count):
        count -= 1
    return alike[:count]


def _batch(worker: Worker, job: Job, limits: Limits) -> int:
    """How many pictures a call with this job in it may make."""
    card = worker.card(job.model)
    if card is None or job.alone or job.crashes or job.previews or job.task != "generate" or len(job.seeds) != 1:
        return 1
    return min(limits.max_batch, card.max_batch)


def take_back(workers: Collection[Worker], version: int, limits: Limits) -> tuple[Job, Worker, Worker] | None:
    """A job that was handed ahead and has not begun, who has it, and who could begin it now; None if there is none.

    Handing ahead is a guess: behind a long job the guess was wrong as soon as another worker has nothing to do.
    """
    idle = [worker for worker in workers if not worker.jobs]
    for holder in workers if idle else ():
        for job in list(holder.jobs.values())[holder.slots :]:
            if job.started or job.over or job.batch:
                continue
            if worker := next((worker for worker in idle if _fits(worker, job, version, limits)), None):
                return job, holder, worker
    return None


def _choose(workers: Collection[Worker], job: Job, version: int, limits: Limits) -> Worker | None:
    """The worker with the fewest jobs in hand, so that an idle one always comes before handing ahead; among equals the
    one that has the job's LoRAs at hand, then the one that has served least, so that they wear evenly."""
    fit = [worker for worker in workers if _fits(worker, job, version, limits)]
    return min(fit, key=lambda worker: (len(worker.jobs), worker.lacks(job), worker.served, worker.name), default=None)


def _fits(worker: Worker, job: Job, version: int, limits: Limits) -> bool:
    """Whether this worker may have this job now: it is in step, holds the model, and has room.

    A job that has already cost a worker its life runs alone, so that it takes no neighbour's work with it. One that may
    be made together with others is not handed ahead: by the time the device is free it may have company.
    """
    waits = job.crashes or _batch(worker, job, limits) > 1
    return (
        worker.state is State.READY
        and worker.version == version
        and worker.missed < limits.suspect_after
        and worker.card(job.model) is not None
        and len(worker.jobs) < (worker.slots if waits else worker.slots + AHEAD)
        and not any(other.crashes for other in worker.jobs.values())
    )
