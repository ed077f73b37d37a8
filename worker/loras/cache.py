"""LoRAs in host memory, ready to be used, bounded by their bytes; the one used longest ago goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from worker.loras.fitting import Fitted


class Cache:
    """For any thread. One LoRA that is larger than the bound is handed out, and not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Fitted] = OrderedDict()

    def get(self, sha256: str, read: Callable[[str], Fitted]) -> Fitted:
        """The LoRA of this hash, by `read` where it is not held; it raises what that raises."""
        with self._lock:
            if held := self._held.get(sha256):
                self._held.move_to_end(sha256)
                return held
        # Beside the lock: whoever needs one that is held does not wait for a disk.
        found = read(sha256)
        with self._lock:
            self._held[sha256] = found
            self._held.move_to_end(sha256)
            while self._bytes() > self._max_bytes:
                self._held.popitem(last=False)
        return found

    @property
    def bytes(self) -> int:
        """What is held."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(fitted.bytes for fitted in self._held.values())
