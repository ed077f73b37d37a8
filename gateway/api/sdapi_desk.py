"""Who asks in AUTOMATIC1111's way: the model each of them chose, and how far their orders are."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from gateway.api.orders import Order
from gateway.jobs.job import Job
from shared.errors import Cancelled, ReplicastError
from shared.wire import Buffer

_MAX_CALLERS = 1024
# To these clients 0 means that nothing is being done.
_LEAST_PROGRESS = 0.01


@dataclass(slots=True, eq=False)
class Running:
    """An order while it is carried out; `shown` has the newest preview of each job, the newest of all at the end."""

    name: str
    order: Order
    shown: dict[str, Buffer] = field(default_factory=dict)
    interrupted: bool = False
    skipped: bool = False

    def show(self, job: Job, preview: int, image: Buffer) -> None:
        """Take a preview."""
        self.shown.pop(job.id, None)
        self.shown[job.id] = image

    def excuses(self, error: ReplicastError) -> bool:
        """Whether that is only what the caller asked for."""
        return isinstance(error, Cancelled) and (self.interrupted or self.skipped)

    @property
    def began(self) -> str:
        """When it was asked for, as these clients are used to see it."""
        return time.strftime("%Y%m%d%H%M%S", time.localtime(self.order.created))


@dataclass(slots=True, eq=False)
class Caller:
    """One of those who ask; `running` are their orders, the oldest first."""

    model: str | None = None
    running: list[Running] = field(default_factory=list)


class Desk:
    """The callers that were heard of lately: a key, or without one an address."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, Caller] = OrderedDict()

    def caller(self, request: Request) -> Caller:
        """Who asks this."""
        name = request.scope["state"]["caller"].account
        caller = self._callers.setdefault(name, Caller())
        self._callers.move_to_end(name)
        if len(self._callers) > _MAX_CALLERS:
            self._callers.popitem(last=False)
        return caller


def progress(running: Running | None, now: float) -> dict[str, Any]:
    """How far an order is, by what its workers told of their steps; `now` in the gateway's monotonic seconds."""
    jobs = running.order.jobs if running else []
    at_work = [job for job in jobs if job.started and not job.over]
    foremost = max(at_work, key=_share, default=None)
    share = sum(map(_share, jobs)) / len(jobs) if jobs else 0.0
    since = min((job.dispatched for job in jobs if job.dispatched), default=now)
    return {
        "progress": round(min(max(share, _LEAST_PROGRESS), 1.0), 4) if running else 0.0,
        # From how long it took so far; nothing is known before the first step.
        "eta_relative": round((now - since) * (1 - share) / share, 2) if share else 0.0,
        "state": {
            "skipped": running is not None and running.skipped,
            "interrupted": running is not None and running.interrupted,
            "job": running.name if running else "",
            "job_count": len(jobs),
            "job_timestamp": running.began if running else "0",
            "job_no": sum(job.over for job in jobs),
            "sampling_step": foremost.step if foremost else 0,
            "sampling_steps": foremost.total if foremost else 0,
        },
        "textinfo": None,
    }


def _share(job: Job) -> float:
    """How much of a job is done, from 0 to 1."""
    return 1.0 if job.over else job.step / job.total if job.total else 0.0
