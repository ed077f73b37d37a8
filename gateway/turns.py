"""Whose turn it is: what can be handed out is handed out, and who waits for nothing is told."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway import dispatch
from gateway.door import Door
from gateway.jobs.job import Job, JobState
from gateway.ledger import Ledger
from gateway.limits import Limits
from gateway.outbox import Outbox
from gateway.prospects import hope, why
from gateway.workers import Worker
from shared import messages as m
from shared.errors import NotReady, StateChanged


def hand_out(
    ledger: Ledger, workers: Collection[Worker], wanted: m.Wanted, limits: Limits, out: Outbox, now: float
) -> None:
    """Give everybody who can take work what is due, and take back what somebody else could begin at once."""
    models = {model.id: model for model in wanted.models}
    while pair := dispatch.hand_out(ledger.backlog, workers, wanted.version, limits, ledger.costs):
        jobs, worker = pair
        if _overtaken(jobs[0], models[jobs[0].model]):
            _unpin(ledger, jobs[0], models[jobs[0].model])
            continue
        for job in jobs:
            ledger.backlog.start(job)
            job.batch, job.batch_size = jobs[0].id if len(jobs) > 1 else "", len(jobs)
            ledger.start(job, worker, models[job.model], now)
    while move := dispatch.take_back(workers, wanted.version, limits):
        job, holder, idle = move
        if _overtaken(job, models[job.model]):
            # Who is idle has the new state already: this one may not be made with it.
            _unpin(ledger, job, models[job.model], holder)
            continue
        take_back(job, holder, out)
        job.move(JobState.QUEUED)
        ledger.start(job, idle, models[job.model], now)


def take_back(job: Job, holder: Worker, out: Outbox) -> None:
    """A job that was handed ahead and has not begun leaves its worker."""
    del holder.jobs[job.id]
    out.send(holder, m.Cancel(job=job.id, attempt=job.attempt))
    out.note("job_taken_back", job, worker=holder.name)


def dash_hopes(ledger: Ledger, workers: Mapping[str, Worker], door: Door, version: int) -> None:
    """What waits for a model that nobody holds, or will hold, has its answer now."""
    for model, queue in ledger.backlog:
        if queue and not hope(model, workers, door, version):
            lost = f"No replica of {model!r} is left: {why(model, workers, door)}."
            for job in list(queue):
                ledger.abandon(job, NotReady(lost, retry_after_seconds=30), None)


def unpin(ledger: Ledger, wanted: m.Wanted) -> None:
    """What waits for a LoRA state that is no longer its model's has its answer now."""
    models = {model.id: model for model in wanted.models}
    for name, queue in ledger.backlog:
        for job in [job for job in queue if _overtaken(job, models[name])]:
            _unpin(ledger, job, models[name])


def _overtaken(job: Job, model: m.WantedModel) -> bool:
    return job.pin not in (None, model.epoch)


def _unpin(ledger: Ledger, job: Job, model: m.WantedModel, holder: Worker | None = None) -> None:
    changed = f"The LoRA state of {model.id!r} is of epoch {model.epoch} now, and no longer of {job.pin}."
    ledger.abandon(job, StateChanged(changed, param="lora_epoch"), holder)
