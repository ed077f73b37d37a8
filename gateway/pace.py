"""How long pictures take, learned from those that were finished, and so how long a new one would wait."""

from __future__ import annotations

_LEAST_SECONDS = 1.0
_MOST_SECONDS = 60.0
_WEIGHT = 0.2


class Pace:
    """Exponential means of the device's seconds per job and per step, by model."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._step_seconds: dict[str, float] = {}

    def learn(self, model: str, seconds: float, steps: int) -> None:
        """A job of this model took the device this long for this many steps."""
        for means, value in ((self._seconds, seconds), (self._step_seconds, seconds / steps)):
            means[model] = (1 - _WEIGHT) * means.get(model, value) + _WEIGHT * value

    def step_seconds(self, model: str) -> float | None:
        """What a step of this model usually takes; None before one was finished."""
        return self._step_seconds.get(model)

    def wait_seconds(self, model: str, *, ahead: int, replicas: int) -> float:
        """When a job behind `ahead` others would start, between 1 and 60 seconds from now."""
        wait = (ahead + 1) * self._seconds.get(model, _LEAST_SECONDS) / max(1, replicas)
        return min(_MOST_SECONDS, max(_LEAST_SECONDS, wait))
