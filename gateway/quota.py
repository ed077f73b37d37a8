"""How much a caller may ask for at once and in a minute: by key, or by address where there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.auth import Caller
from gateway.rates import Rates
from shared.errors import RateLimited


class Quota:
    """The bounds of every caller: a key's own, else these. None is no bound."""

    def __init__(self, rates: Rates, *, max_requests: int | None, images_per_minute: int | None) -> None:
        self._rates = rates
        self._max_requests, self._images_per_minute = max_requests, images_per_minute
        self._in_flight: Counter[str] = Counter()

    @contextmanager
    def hold(self, caller: Caller, images: int) -> Iterator[None]:
        """One request of `caller` for so many images is in flight while the block runs. Raises RateLimited.

        Its images count for a minute from now on, whatever becomes of them.
        """
        self._may_start(caller)
        self._may_make(caller, images)
        self._in_flight[caller.account] += 1
        try:
            yield
        finally:
            self._in_flight[caller.account] -= 1
            if not self._in_flight[caller.account]:
                del self._in_flight[caller.account]

    def _may_start(self, caller: Caller) -> None:
        most = caller.max_requests or self._max_requests
        if most is not None and self._in_flight[caller.account] >= most:
            # When the first of them ends is not known: soon is a guess.
            raise RateLimited(f"Rate limit exceeded: {most} requests at a time.", retry_after_seconds=1)

    def _may_make(self, caller: Caller, images: int) -> None:
        most = caller.images_per_minute or self._images_per_minute
        if most is None:
            return
        if images > most:
            # No time to come back at: it will never fit.
            raise RateLimited(f"Rate limit exceeded: {images} images, and {most} images per minute are allowed.")
        wait = self._rates.take(f"images {caller.account}", most, images)
        if wait is not None:
            raise RateLimited(f"Rate limit exceeded: {most} images per minute.", retry_after_seconds=wait)
