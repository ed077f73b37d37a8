"""A gateway that keeps something of each request for ever, for whoever looks for leaks: `python -m tests.chaos.leaky`.

It keeps 64 KiB, a task and a descriptor.
"""

from __future__ import annotations

import asyncio
import os

from starlette.types import Receive, Scope, Send

from gateway import app
from gateway.cli import main
from gateway.front import Front

_kept: list[object] = []


class Leaky(Front):
    """The outermost layer, with the leak."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/images/"):
            _kept.append(os.urandom(64 << 10))
            _kept.append(asyncio.create_task(asyncio.Event().wait()))
            os.open(os.devnull, os.O_RDONLY)
        await super().__call__(scope, receive, send)


if __name__ == "__main__":
    app.Front = Leaky
    main()
