"""Votes on a model's next LoRA state. Pure.

Every ready replica is asked whether it could have the state. One that refuses calls it off; who is lost, or silent
for too long, leaves the vote; and without a single word for it there is nothing to decide. That the state then holds is
decided elsewhere, by one durable row, and from there on replicas are told what to be, not what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.limits import Limits
from gateway.outbox import Outbox
from gateway.workers import State, Worker
from shared import messages as m
from shared.loras import LoraState


@dataclass(slots=True, eq=False)
class Ballot:
    """One vote: `asked` are the workers that have not answered, `votes` what the others said, by their names."""

    model: str
    epoch: int
    loras: LoraState
    asked: set[str]
    ticks: int = 0
    votes: dict[str, m.Prepared] = field(default_factory=dict)

    @property
    def refusals(self) -> dict[str, m.Problem]:
        """Why who cannot have this state cannot."""
        return {name: vote.problem for name, vote in self.votes.items() if vote.problem}

    @property
    def agreed(self) -> bool:
        """Whether somebody could have this state, and nobody could not."""
        return bool(self.votes) and not self.refusals


class Ballots:
    """The votes that are under way, at most one a model."""

    def __init__(self, out: Outbox) -> None:
        self._open: dict[str, Ballot] = {}
        self._out = out

    def open(self, model: str, epoch: int, loras: LoraState, workers: Iterable[Worker], limits: Limits) -> Ballot:
        """Ask every ready replica that is heard, also one that has yet to follow the last decision: it can tell, too.

        Whoever asks again while a vote is under way has a bug, and meets RuntimeError.
        """
        if model in self._open:
            raise RuntimeError(f"{model}: a vote is under way")
        heard = [w for w in workers if w.missed < limits.suspect_after]
        voters = [w for w in heard if w.state is State.READY and w.card(model)]
        ballot = self._open[model] = Ballot(model, epoch, loras, {worker.name for worker in voters})
        for worker in voters:
            self._out.send(worker, m.Prepare(model=model, epoch=epoch, loras=loras))
        return ballot

    def hear(self, worker: Worker, vote: m.Prepared) -> bool:
        """Take down a vote; False if it speaks for another state than it was asked about, and so for nobody."""
        ballot = self._open.get(vote.model)
        if ballot is None or ballot.epoch != vote.epoch or worker.name not in ballot.asked:
            # A late answer to an old question.
            return True
        if vote.problem is None and vote.digest != ballot.loras.digest:
            return False
        ballot.asked.remove(worker.name)
        ballot.votes[worker.name] = vote
        return True

    def lose(self, worker: Worker) -> None:
        """Who is gone has no say, whatever it said: its next life is told how things stand."""
        for ballot in self._open.values():
            ballot.asked.discard(worker.name)
            ballot.votes.pop(worker.name, None)

    def tick(self, most_ticks: float) -> None:
        """A ping interval has passed: who has not answered for so many leaves the vote."""
        for ballot in self._open.values():
            ballot.ticks += 1
            if ballot.ticks > most_ticks:
                ballot.asked.clear()

    def count(self) -> None:
        """Close what nobody has to be waited for in any more."""
        for ballot in [ballot for ballot in self._open.values() if not ballot.asked]:
            del self._open[ballot.model]
            self._out.voted(ballot)
