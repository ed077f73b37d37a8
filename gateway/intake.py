"""What is let in, within bounds: open connections, and the request bodies in memory, all requests together."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping
from typing import Any, Literal

from shared.errors import QueueFull

_RETRY_SECONDS = 1.0

# Why a connection was closed before there was a request on it.
Refusal = Literal["not_http", "too_large", "too_many", "too_slow"]


class Connections:
    """How many connections are open, of how many at `most`, and how many were closed unheard, by why."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0
        self.refused: Counter[Refusal] = Counter()


class Intake:
    """Counts the bytes that requests hold, from their arrival until their answer. `most_bytes` bounds their sum."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0

    def take(self, request: MutableMapping[str, Any], size: int) -> None:
        """A request, known by its state, has got so many bytes more. Raises QueueFull where they are too many."""
        if self.held_bytes + size > self.most_bytes:
            raise QueueFull("Too much is being uploaded at the moment.", retry_after_seconds=_RETRY_SECONDS)
        self.held_bytes += size
        request["held_bytes"] = request.get("held_bytes", 0) + size

    def release(self, request: MutableMapping[str, Any]) -> None:
        """The request is over, and what it held with it."""
        self.held_bytes -= request.pop("held_bytes", 0)
