"""A run in hand: what it works from while that is decoded, what it shows while that is encoded, and its one end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from shared.loras import NO_LORAS, LoraState
from shared.messages import Done, Failed, Message, Progress, Run
from worker.backends import Inputs

# A way to say something to the gateway, from any thread.
Speak = Callable[[Message, Sequence[bytes]], None]


@dataclass(slots=True, eq=False)
class Task:
    """What is said of a run is said through here, so that nothing follows its end, and there is one."""

    run: Run
    speak: Speak
    total: int
    inputs: Future[Inputs] | None = None
    previews: list[Future[None]] = field(default_factory=list)
    taken: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    loras: LoraState = NO_LORAS
    reported: float = 0.0
    step: int = 0
    _over: bool = False
    _mouth: threading.Lock = field(default_factory=threading.Lock)

    def progress(self, preview: int | None = None, images: Sequence[bytes] = ()) -> None:
        """Say how far it is, and show a preview if there is one; nothing, when it is over."""
        run = self.run
        with self._mouth:
            if not self._over:
                said = Progress(job=run.job, attempt=run.attempt, step=self.step, total=self.total, preview=preview)
                self.speak(said, images)

    def end(self, message: Done | Failed, images: Sequence[bytes] = ()) -> None:
        """Say what became of it; only the first end counts."""
        with self._mouth:
            if not self._over:
                self._over = True
                self.speak(message, images)
