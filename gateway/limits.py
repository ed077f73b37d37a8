"""The bounds that the pool keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The pool's bounds. Silence is counted in pings, all else in ticks of `ping_seconds`."""

    ping_seconds: float = 1.0
    suspect_after: int = 2
    gone_after: int = 4
    load_seconds: float = 900.0
    hello_seconds: float = 60.0
    stuck_seconds: float = 30.0
    retry_load_seconds: float = 300.0
    prepare_seconds: float = 30.0
    max_attempts: int = 3
    max_queue: int = 1000
    max_queue_per_key: int = 0
    max_queue_seconds: float = 0.0
    max_queue_seconds_per_key: float = 0.0
    max_batch: int = 1
