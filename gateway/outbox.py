"""What the pool has decided so far, in order, until somebody takes it to carry it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.actions import Action, Event, Finish, Kill, Note, Send, Show, Voted
from gateway.causes import Death
from gateway.jobs.job import Job, Outcome
from gateway.workers import Worker
from shared.messages import Message, Reject
from shared.wire import Buffer, Stamp

if TYPE_CHECKING:
    from gateway.ballots import Ballot


class Outbox:
    """The actions that are not taken yet; messages in it carry the gateway's `term`."""

    def __init__(self, term: int) -> None:
        self._term = term
        self._actions: list[Action] = []

    def take(self) -> list[Action]:
        """Everything decided since the last time."""
        actions, self._actions = self._actions, []
        return actions

    def send(self, worker: Worker, message: Message, attachments: tuple[Buffer, ...] = ()) -> None:
        """Say this in the worker's session."""
        worker.sent += 1
        stamp = Stamp(self._term, "", worker.session, worker.sent)
        self._actions.append(Send(worker.peer, message, stamp, attachments))

    def reject(self, peer: bytes, code: str, why: str) -> None:
        """Tell a peer that it will not be let in."""
        self._actions.append(Send(peer, Reject(code=code, message=why), Stamp(self._term)))

    def kill(self, worker: str, reason: Death, *, at_work: bool = False) -> None:
        """End the process of this worker."""
        self._actions.append(Kill(worker, reason, at_work))

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Give a job its one answer."""
        self._actions.append(Finish(job, outcome))

    def show(self, job: Job, preview: int, image: Buffer) -> None:
        """Show whoever waits for a job what it will be."""
        self._actions.append(Show(job, preview, image))

    def voted(self, ballot: Ballot) -> None:
        """Close a vote."""
        self._actions.append(Voted(ballot))

    def note(self, event: Event, job: Job | None = None, since: float | None = None, **fields: object) -> None:
        """Leave a log line and a count; about this job, its present attempt, if one is given."""
        about = {"job": job.id, "request": job.request_id, "attempt": job.attempt} if job else {}
        self._actions.append(Note(event, job, since, about | fields))
