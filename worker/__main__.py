"""The one way a worker starts: `python -m worker`, told by its environment whom to dial and who it is.

It dies with its parent: standard input is a pipe whose far end only the parent holds, so that even a SIGKILL of the
gateway closes it; on Linux the kernel is asked besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Literal, cast

from shared import environment, logs
from shared.messages import Device

if TYPE_CHECKING:
    from worker.session import Session

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve one gateway until it says goodbye; the exit status tells a supervisor why."""
    told = {name: os.environ.pop(name, "") for name in vars(environment).values() if str(name).startswith("REPLICAST_")}
    name = told[environment.NAME]
    logs.setup(
        cast(logs.Level, told[environment.LOG_LEVEL] or "info"),
        cast(logs.Format, told[environment.LOG_FORMAT] or "text"),
        worker=name,
    )
    if not (told[environment.ENDPOINT] and name and told[environment.TOKEN]):
        logs.get("worker").error("not_told", problem="a worker is started by a gateway, not by hand")
        return os.EX_USAGE
    if told[environment.PARENT]:
        _die_with(int(told[environment.PARENT]))
    # Only now: the parent is watched before anything heavy is imported.
    from worker.session import Session

    session = Session(told[environment.ENDPOINT], name, told[environment.TOKEN], _device(told))
    return asyncio.run(_live(session))


async def _live(session: Session) -> int:
    loop = asyncio.get_running_loop()
    # Ctrl-C in a terminal is the gateway's to handle: it drains us.
    loop.add_signal_handler(signal.SIGTERM, session.drain, "SIGTERM")
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    return await session.run()


def _die_with(parent: int) -> None:
    """End this process within moments of its parent's death, however that comes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, name="parent-watch", daemon=True).start()
    if os.getppid() != parent:
        os._exit(0)


def _watch() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(0)


def _device(told: dict[str, str]) -> Device:
    kind, _, rest = told[environment.DEVICE].partition(":")
    names = tuple(name for name in rest.split(",") if name)
    return Device(
        kind=cast(Literal["cuda", "cpu", "mps", "stub"], kind or "cpu"),
        names=names,
        threads=int(told[environment.THREADS] or 1),
    )


if __name__ == "__main__":
    sys.exit(main())
