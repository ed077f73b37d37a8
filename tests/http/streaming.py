"""A request whose answer is read event by event as it is sent, and which may be left: plain ASGI, for nothing waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

PATIENCE = 20.0


@dataclass(frozen=True)
class Event:
    """One event: its name and its data; a comment has neither."""

    name: str | None
    data: dict[str, Any] | None
    text: str


@dataclass
class Exchange:
    """One request in the middle of its answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    over: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)
    _more: asyncio.Condition = field(default_factory=asyncio.Condition)
    _read: int = 0

    async def send(self, message: Any) -> None:
        async with self._more:
            if message["type"] == "http.response.start":
                assert not self.status
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                assert not self.over
                # As a server does for who has left: nothing arrives, and nothing is raised.
                self.body += b"" if self.left.is_set() else message.get("body", b"")
                self.over = not message.get("more_body", False)
            self._more.notify_all()

    async def wait(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE), self._more:
            await self._more.wait_for(condition)

    async def started(self) -> int:
        """The status, as soon as there is one."""
        await self.wait(lambda: self.status)
        return self.status

    async def event(self) -> Event:
        """The next event, waited for."""
        await self.wait(lambda: b"\n\n" in self.body[self._read :] or self.over)
        end = self.body.index(b"\n\n", self._read)
        text = self.body[self._read : end].decode()
        self._read = end + 2
        return _parsed(text)

    async def rest(self) -> list[Event]:
        """All events that still come."""
        await self.wait(lambda: self.over)
        texts = self.body[self._read :].decode().split("\n\n")
        assert texts.pop() == "", "the last event is not whole"
        self._read = len(self.body)
        return [_parsed(text) for text in texts]


@asynccontextmanager
async def asked(
    asgi: ASGIApp, path: str, /, headers: dict[str, str] | None = None, **body: Any
) -> AsyncIterator[Exchange]:
    """A POST of this JSON. Whoever leaves the block has left the connection."""
    exchange = Exchange()
    content = json.dumps(body).encode()
    sent = {"host": "127.0.0.1:8000", "content-type": "application/json"}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    incoming = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await exchange.left.wait()
        return {"type": "http.disconnect"}

    serving = asyncio.create_task(asgi(scope, receive, exchange.send))  # type: ignore[arg-type]
    try:
        yield exchange
    finally:
        exchange.left.set()
        async with asyncio.timeout(PATIENCE):
            await serving


def _parsed(text: str) -> Event:
    lines = text.split("\n")
    if all(line.startswith(":") for line in lines):
        return Event(None, None, text)
    assert len(lines) == 2, text
    name, data = lines
    assert name.startswith("event: ")
    assert data.startswith("data: ")
    return Event(name.removeprefix("event: "), json.loads(data.removeprefix("data: ")), text)
