"""How long work takes, learned from what was finished: seconds of a device by model, pixels, steps and batch.

Exact signatures are means of their own. One that was never seen is scaled from the model's nearest by the pixels times
steps that they differ in: what a denoiser does is near to proportional to that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_WEIGHT = 0.2
_UNKNOWN_SECONDS = 1.0
_LEAST_SECONDS = 0.001
# What a batch saves has to be worth its members' waiting for each other.
_WORTH_IT = 0.9
# So many signatures are kept per model; clients choose sizes and steps, and nothing may grow without bound.
_MOST_KNOWN = 256


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of a pipeline is asked: pixels of one picture, steps, and how many pictures are made together."""

    pixels: int
    steps: int
    batch: int = 1

    @property
    def amount(self) -> int:
        """Pixels times steps, of all its pictures."""
        return self.pixels * self.steps * self.batch


class Costs:
    """Exponential means of device seconds; the newest fifth of a mean is the newest figure."""

    def __init__(self) -> None:
        self._known: dict[str, dict[Work, float]] = {}

    def learn(self, model: str, work: Work, seconds: float) -> None:
        """This work took the device this long."""
        known = self._known.setdefault(model, {})
        # Taken out and put back: the signature that was not seen for longest is the first to be forgotten.
        old = known.pop(work, None)
        known[work] = max(_LEAST_SECONDS, seconds if old is None else (1 - _WEIGHT) * old + _WEIGHT * seconds)
        if len(known) > _MOST_KNOWN:
            del known[next(iter(known))]

    def pays(self, model: str, work: Work, batch: int) -> bool:
        """Whether so many pictures take less time together than one by one; what was not seen yet is worth a try."""
        known = self._known.get(model, {})
        alone, together = known.get(work), known.get(replace(work, batch=batch))
        return alone is None or together is None or together < alone * batch * _WORTH_IT

    def knows(self, model: str) -> bool:
        """Whether anything was learned of the model."""
        return model in self._known

    def seconds(self, model: str, work: Work) -> float:
        """How long this work will take a device; a second where nothing is known of the model."""
        known = self._known.get(model)
        if not known:
            return _UNKNOWN_SECONDS
        if (exact := known.get(work)) is not None:
            return exact
        nearest = min(known, key=lambda other: max(work.amount, other.amount) / min(work.amount, other.amount))
        return known[nearest] * work.amount / nearest.amount

    def step_seconds(self, model: str, work: Work) -> float | None:
        """How long a step of this work takes; None where nothing is known of the model."""
        return self.seconds(model, work) / work.steps if self._known.get(model) else None
