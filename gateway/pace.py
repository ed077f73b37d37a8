"""How long pictures take, learned from those that were finished, and so how long a new one would wait."""

from __future__ import annotations

_LEAST_SECONDS = 1.0
_MOST_SECONDS = 60.0
_WEIGHT = 0.2


class Pace:
    """An exponential mean of the device's seconds per job, by model."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def learn(self, model: str, seconds: float) -> None:
        """A job of this model took the device this long."""
        known = self._seconds.get(model, seconds)
        self._seconds[model] = (1 - _WEIGHT) * known + _WEIGHT * seconds

    def wait_seconds(self, model: str, *, ahead: int, replicas: int) -> float:
        """When a job behind `ahead` others would start, between 1 and 60 seconds from now."""
        wait = (ahead + 1) * self._seconds.get(model, _LEAST_SECONDS) / max(1, replicas)
        return min(_MOST_SECONDS, max(_LEAST_SECONDS, wait))
