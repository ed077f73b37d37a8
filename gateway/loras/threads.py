"""Work in a thread that leaves nothing half-done: it hears when nobody waits any more, and is seen to its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def whole(work: Callable[[threading.Event], T], done: Callable[[T], None]) -> T:
    """Do this in a thread and hand what it returns to `done`, on the loop, even if the caller was cancelled meanwhile.

    The event that `work` gets is set when nobody waits for it any more: it should then raise, soon.
    """
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        raise
    finally:
        if task.done() and not task.cancelled() and task.exception() is None:
            done(task.result())
    return task.result()
