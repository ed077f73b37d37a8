"""The request bodies that are in memory, all requests together, within a bound."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from shared.errors import QueueFull

_RETRY_SECONDS = 1.0


class Intake:
    """Counts the bytes that requests hold, from their arrival until their answer. `most_bytes` bounds their sum."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    def take(self, request: MutableMapping[str, Any], size: int) -> None:
        """A request, known by its state, has got so many bytes more. Raises QueueFull where they are too many."""
        if self.held_bytes + size > self._most_bytes:
            raise QueueFull("Too much is being uploaded at the moment.", retry_after_seconds=_RETRY_SECONDS)
        self.held_bytes += size
        request["held_bytes"] = request.get("held_bytes", 0) + size

    def release(self, request: MutableMapping[str, Any]) -> None:
        """The request is over, and what it held with it."""
        self.held_bytes -= request.pop("held_bytes", 0)
