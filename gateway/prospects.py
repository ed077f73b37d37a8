"""Pure: whether there is hope for a model that no worker can serve now, and why that is so."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.door import Door
from gateway.workers import Worker


def hope(model: str, workers: Mapping[str, Worker], door: Door, version: int) -> bool:
    """Whether a worker holds this model, may come to hold it, or is on its way."""
    return door.awaited(workers) or any(w.card(model) or w.version != version for w in workers.values())


def why(model: str, workers: Mapping[str, Worker], door: Door) -> str:
    """What keeps this model from being served, in words for a client."""
    problems = [o.problem.message for w in workers.values() if (o := w.outcomes.get(model)) and o.problem]
    return (problems or list(door.given_up.values()) or ["workers are starting"])[0]
