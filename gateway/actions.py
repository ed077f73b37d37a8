"""What the pool decides, as values: whoever holds the sockets and processes carries them out, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gateway.causes import Death
from gateway.jobs.job import Job, Outcome
from shared.messages import Message
from shared.wire import Buffer, Stamp

if TYPE_CHECKING:
    from gateway.ballots import Ballot

# Every event that is counted: a series of each is there from the start.
Event = Literal[
    "bad_result",
    "illegal_message",
    "job_poison",
    "job_requeued",
    "job_taken_back",
    "replayed_message",
    "stale_result",
    "stranger_message",
    "task_restarted",
    "wire_error",
    "work_lost",
    "worker_asked",
    "worker_in_step",
    "worker_joined",
    "worker_killed",
    "worker_lost",
    "worker_ready",
    "worker_rejected",
]


@dataclass(frozen=True, slots=True)
class Send:
    """Send this to that peer; if it cannot be delivered, say so to `Pool.undeliverable`."""

    peer: bytes
    message: Message
    stamp: Stamp
    attachments: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """A job has its one answer."""

    job: Job
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Show:
    """What a job's picture will be: its preview of this number, counted from 0, encoded."""

    job: Job
    preview: int
    image: Buffer


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process of this worker: it cannot be reasoned with. `at_work`: its work is charged with its end."""

    worker: str
    reason: Death
    at_work: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a log line and a counter: the job it is about, if it is, and since when what it tells lasted."""

    event: Event
    job: Job | None = None
    since: float | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Voted:
    """Every vote that will come has come."""

    ballot: Ballot


Action = Send | Finish | Show | Kill | Note | Voted
