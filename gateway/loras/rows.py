"""How far each replica has followed a LoRA decision: read from what each said itself, never from one for all."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.health import state_of
from gateway.keeper import Facts, Standing
from gateway.pool import Pool
from gateway.serving import Serving
from gateway.workers import State, Worker
from shared.messages import Problem, WantedModel


@dataclass(frozen=True, slots=True)
class Row:
    """One replica: what it has applied, and what keeps it from the rest.

    `epoch` and `digest` are what it last said it holds, None if it holds nothing. `kind` is that of its device:
    within one, equal states have equal fingerprints. `age_ms` is how long ago it was last heard.
    """

    worker: str
    state: str
    behind: bool
    epoch: int | None
    digest: str | None
    fingerprint: str | None
    kind: str
    age_ms: int | None
    quarantined: bool
    problem: Problem | None

    @property
    def applied(self) -> bool:
        """Whether it serves with what is wanted."""
        return not self.behind and self.epoch is not None


def rows(serving: Serving, model: WantedModel) -> tuple[Row, ...]:
    """A row for each worker there is, or was, in the order of their slots."""
    now = time.monotonic()
    return tuple(_row(serving.pool, name, facts, model, now) for name, facts in serving.supervisor.facts.items())


def converged(found: Iterable[Row]) -> bool:
    """Whether all that can serve have applied what is wanted, with the same weights, and somebody has."""
    following = [row for row in found if not row.quarantined and row.problem is None and row.state not in _AWAY]
    prints: dict[str, set[str | None]] = {}
    for row in following:
        prints.setdefault(row.kind, set()).add(row.fingerprint)
    return bool(following) and all(row.applied for row in following) and all(len(each) == 1 for each in prints.values())


# Told to be elsewhere: nobody waits for these.
_AWAY = frozenset({Standing.DRAINED.value, Standing.STOPPED.value, Standing.DRAINING.value})


def _row(pool: Pool, name: str, facts: Facts, model: WantedModel, now: float) -> Row:
    worker = pool.workers.get(name)
    outcome = worker.outcomes.get(model.id) if worker else None
    holds = outcome is not None and outcome.card is not None
    return Row(
        worker=name,
        state=state_of(pool, name, facts),
        behind=not (worker and holds and outcome and _in_step(worker, pool, model, outcome.digest)),
        epoch=outcome.epoch if outcome and holds else None,
        digest=outcome.digest if outcome and holds else None,
        fingerprint=(outcome.fingerprint or None) if outcome and holds else None,
        kind=worker.device.kind if worker else facts.slot.kind,
        age_ms=round((now - worker.heard_at) * 1000) if worker else None,
        quarantined=facts.standing is Standing.QUARANTINED,
        problem=outcome.problem if outcome else _problem(facts),
    )


def _in_step(worker: Worker, pool: Pool, model: WantedModel, digest: str) -> bool:
    present = worker.state is State.READY and worker.missed < pool.limits.suspect_after
    return present and worker.version == pool.wanted.version and digest == model.digest


def _problem(facts: Facts) -> Problem | None:
    """What is known of one that is not there."""
    if facts.standing is not Standing.QUARANTINED:
        return None
    return Problem(code="quarantined", message=facts.last_error or facts.cause)
