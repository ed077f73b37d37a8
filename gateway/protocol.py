"""uvicorn's protocol with bounds: how many connections, and within which time and size the head of a request arrives.

uvicorn itself waits for ever for a head, takes one of any length, and of connections as many as there are descriptors.
"""

from __future__ import annotations

import asyncio

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.intake import Connections, Refusal


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What is no HTTP, or too long or too slow in becoming it, is answered in our shape and closed.

    A server makes a class of its own, with the connections that it counts as `counted`.
    """

    counted = Connections(4096)
    head_seconds = 10.0
    head_bytes = 64 << 10
    _deadline: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.counted.open += 1
        self._expect_head()
        if self.counted.open > self.counted.most:
            self._refuse("too_many", 503, "Service Unavailable", "There are too many connections.", "retry-after: 1")

    def connection_lost(self, exc: Exception | None) -> None:
        self.counted.open -= 1
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        # Only now: the same bytes may have held the end of the head.
        if self._in_head and self._head_bytes > self.head_bytes and not self.transport.is_closing():
            self._refuse("too_large", 431, "Request Header Fields Too Large", "The request's head is too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the bytes are no HTTP."""
        self._refuse("not_http", 400, "Bad Request", "The request is not valid HTTP.")

    def _expect_head(self) -> None:
        self._head_is_there()
        self._in_head = True
        self._deadline = self.loop.call_later(self.head_seconds, self._too_slow)

    def _head_is_there(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            late = f"The request's head did not arrive within {self.head_seconds:g} seconds."
            self._refuse("too_slow", 408, "Request Timeout", late)

    def _refuse(self, why: Refusal, status: int, phrase: str, message: str, *headers: str) -> None:
        self.counted.refused[why] += 1
        code = phrase.lower().replace(" ", "_")
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        body = orjson.dumps({"error": error})
        lines = (
            f"HTTP/1.1 {status} {phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *headers,
        )
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
