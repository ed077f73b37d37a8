"""How often in a minute, by name. The only file that imports `limits`, and that on use: it is slow to import."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from threading import Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limits.storage import MemoryStorage

_SWEEP_EVERY = 1024
_MINUTE_SECONDS = 60.0


class Rates:
    """The counts of one server. `clock` is the one that the library reads: Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._taken: dict[tuple[str, int], None] = {}
        self._sweep_at = _SWEEP_EVERY
        self._strikes = 0

    @cached_property
    def _storage(self) -> MemoryStorage:
        from limits.storage import MemoryStorage

        storage = MemoryStorage()
        # It sweeps in threads of its own, which trip over what is swept here: one thread does it all.
        storage.timer.cancel()
        self._expire = storage.timer.function
        storage.timer = _Idle(0, self._expire)
        return storage

    def take(self, name: str, most: int, amount: int = 1) -> float | None:
        """Take `amount` of the `most` that `name` may have in any minute.

        None when it is taken; else nothing is, and this is how many seconds it takes until some of it is free again.
        """
        from limits import RateLimitItemPerMinute
        from limits.strategies import MovingWindowRateLimiter

        window, item = MovingWindowRateLimiter(self._storage), RateLimitItemPerMinute(most)
        if window.hit(item, name, cost=amount):
            self._remember(name, most)
            return None
        return self._until(window.get_window_stats(item, name).reset_time)

    def strike(self, name: str, most: int) -> float | None:
        """Count one more of the `most` that `name` may have in the minute since its first; returns as `take` does.

        For names that strangers can make up: it keeps one number each, and drops it after the minute.
        """
        from limits import RateLimitItemPerMinute
        from limits.strategies import FixedWindowRateLimiter

        window, item = FixedWindowRateLimiter(self._storage), RateLimitItemPerMinute(most)
        # Looked at first: a refused one would be counted too.
        if window.test(item, name) and window.hit(item, name):
            self._strikes += 1
            if self._strikes % _SWEEP_EVERY == 0:
                self._expire()
            return None
        return self._until(window.get_window_stats(item, name).reset_time)

    def _until(self, moment: float) -> float:
        return min(_MINUTE_SECONDS, max(0.0, moment - self._clock()))

    def _remember(self, name: str, most: int) -> None:
        """The library keeps the name of a moving window for ever: now and then those that are empty are dropped."""
        from limits import RateLimitItemPerMinute
        from limits.strategies import MovingWindowRateLimiter

        self._taken[name, most] = None
        if len(self._taken) < self._sweep_at:
            return
        self._expire()
        window = MovingWindowRateLimiter(self._storage)
        for known in list(self._taken):
            item = RateLimitItemPerMinute(known[1])
            if window.get_window_stats(item, known[0]).remaining == known[1]:
                window.clear(item, known[0])
                del self._taken[known]
        self._sweep_at = max(_SWEEP_EVERY, 2 * len(self._taken))


class _Idle(Timer):
    """A timer that is never set: whoever looks finds it at work already."""

    def is_alive(self) -> bool:
        return True
