"""The jobs that were accepted, from that moment to their one answer: where they wait, what they cost, how they end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gateway.backlog import Backlog
from gateway.causes import Cause, Waste
from gateway.costs import Costs
from gateway.jobs.job import Job, JobState, Result
from gateway.limits import Limits
from gateway.outbox import Outbox
from gateway.workers import Worker
from shared import messages as m
from shared.errors import Cancelled, Poison, ReplicastError, UnknownModel


class Ledger:
    """Every job that is not over; what is decided about one goes into the outbox."""

    def __init__(self, models: Iterable[str], out: Outbox) -> None:
        self.jobs: dict[str, Job] = {}
        self.backlog = Backlog(models)
        self.costs = Costs()
        self._out = out

    def take(self, job: Job, now: float) -> None:
        """Accept a job: from now on it gets exactly one answer."""
        job.accepted = now
        job.cost_seconds = self.costs.seconds(job.model, job.work)
        self.jobs[job.id] = job
        self.backlog.join(job)

    def start(self, job: Job, worker: Worker, model: m.WantedModel, now: float) -> None:
        """Hand out the job's next attempt to this worker."""
        job.move(JobState.RUNNING)
        job.attempt += 1
        job.dispatched, job.worker = now, worker.name
        worker.take(job)
        self._out.send(worker, job.run(model), job.inputs)

    def requeue(self, job: Job, cause: Cause) -> None:
        """Its worker is gone, or would not have it: it waits again, where it was."""
        if job.model not in self.backlog:
            self.finish(job, _unloaded(job))
            return
        job.move(JobState.QUEUED)
        self._out.note("job_requeued", job, job.dispatched, worker=job.worker, reason=cause, crashes=job.crashes)
        job.rewind()
        self.backlog.add(job)

    def again(self, job: Job, cause: Cause, limits: Limits, *, blamed: bool) -> None:
        """Run a job elsewhere, unless it has cost too many workers their lives."""
        self.waste(job, "lost")
        job.crashes += blamed
        if job.crashes >= limits.max_attempts:
            self._out.note("job_poison", job, crashes=job.crashes)
            self.finish(job, Poison(f"{job.crashes} workers died of this request."))
        else:
            self.requeue(job, cause)

    def waste(self, job: Job, why: Waste) -> None:
        """What a device has done of this job until now, if it has begun, is of no use; of a batch it is its share."""
        if job.started:
            self._out.note("work_lost", job, job.began, worker=job.worker, reason=why, shared=job.batch_size)

    def abandon(self, job: Job, reason: ReplicastError, worker: Worker | None) -> None:
        """End a job that nobody waits for, wherever it is; `worker` has it in hand, if one does."""
        if job.state is JobState.QUEUED:
            self.backlog.remove(job)
        elif worker is not None:
            # It keeps its place in the worker until the worker says that the device is free again.
            self._out.send(worker, m.Cancel(job=job.id, attempt=job.attempt))
        self.finish(job, reason)

    def finish(self, job: Job, outcome: Result | ReplicastError) -> None:
        """Give a job its answer."""
        match outcome:
            case Result():
                work = replace(job.work, batch=outcome.timings.batch)
                self.costs.learn(job.model, work, outcome.timings.inference_ms / 1000)
                job.move(JobState.SUCCEEDED)
            case Cancelled():
                job.move(JobState.CANCELLED)
            case _:
                job.move(JobState.FAILED)
        del self.jobs[job.id]
        self._out.finish(job, outcome)

    def keep(self, models: Iterable[str]) -> None:
        """These models are served from now on; what waits for another has its answer."""
        for job in self.backlog.keep(models):
            self.finish(job, _unloaded(job))


def _unloaded(job: Job) -> UnknownModel:
    return UnknownModel(f"The model {job.model!r} was unloaded.", param="model")
