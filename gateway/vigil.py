"""Pure: what the passing of a ping interval says about a worker: that it is well, or why it must go.

Everything is counted in ticks and not timed, so that a machine that was held up as a whole blames nobody.
"""

from __future__ import annotations

from typing import Literal

from gateway.causes import Death
from gateway.costs import Costs
from gateway.limits import Limits
from gateway.workers import Worker

# A step may take this many times what it usually takes; until that is known, as many times the least patience.
_PATIENCE = 20
_PATIENCE_UNKNOWN = 10


def verdict(
    worker: Worker, version: int, punctual: bool, limits: Limits, costs: Costs
) -> Death | Literal["still"] | None:
    """Count one tick of this worker, and say why it must go, if it must; "still" asks for a word with it first."""
    # What it has begun it finishes first, and meanwhile it is held to what any work is held to.
    applying = worker.version != version and not any(job.started for job in worker.jobs.values())
    moved = worker.steps != worker.steps_seen
    worker.steps_seen = worker.steps
    worker.applying_ticks = worker.applying_ticks + 1 if applying else 0
    if punctual:
        worker.missed = 0 if worker.heard else worker.missed + 1
    if moved or applying or not worker.jobs:
        worker.still_ticks, worker.asked = 0, False
    else:
        worker.still_ticks += punctual
    if applying:
        # Loading holds the interpreter for seconds at a time: then only its own bound counts.
        return "load_timeout" if worker.applying_ticks * limits.ping_seconds > limits.load_seconds else None
    if worker.missed >= limits.gone_after:
        return "silent"
    if worker.still_ticks and worker.still_ticks * limits.ping_seconds > _patience(worker, limits, costs):
        return "stuck" if worker.asked else "still"
    return None


def load_is_due(worker: Worker, limits: Limits) -> bool:
    """Whether to ask again for a model that could not be loaded: what kept it may be gone."""
    failed = any(outcome.problem for outcome in worker.outcomes.values())
    worker.failed_ticks = worker.failed_ticks + 1 if failed else 0
    if worker.failed_ticks * limits.ping_seconds <= limits.retry_load_seconds:
        return False
    worker.failed_ticks = 0
    return True


def _patience(worker: Worker, limits: Limits, costs: Costs) -> float:
    """How long the device may show no step, in seconds: it answers pings, but a hung kernel or a dead lock does too.

    Once it was asked to stop it has as long as a silent worker has.
    """
    grace = limits.gone_after * limits.ping_seconds if worker.asked else 0.0
    job = next(iter(worker.jobs.values()))
    usual = costs.step_seconds(job.model, job.work)
    if usual is None:
        return _PATIENCE_UNKNOWN * limits.stuck_seconds + grace
    return max(limits.stuck_seconds, _PATIENCE * usual) + grace
