"""The bounds of a request's head, over a real socket: what never becomes a request is answered and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.intake import Connections
from gateway.protocol import BoundedProtocol

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"


class Hasty(BoundedProtocol):
    """As the gateway's, with less patience."""

    head_seconds = 0.3


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(protocol: type[BoundedProtocol] = Hasty) -> AsyncIterator[int]:
    server = uvicorn.Server(uvicorn.Config(echo, port=0, http=protocol, lifespan="off", log_config=None))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.force_exit = True
        await server.shutdown()


async def told(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that the server says until it hangs up or has been silent for long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST / HTT", b"POST / HTTP/1.1\r\nhost: x\r\n"])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async with served() as port:
        answer = await told(port, sent)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


async def test_a_head_that_trickles_in_is_too_slow() -> None:
    async with served() as port:
        answer = await told(port, *[HEAD[at : at + 4] for at in range(0, 40, 4)], pause=0.05)
    # What it says may be lost on a client that goes on sending.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


async def test_a_head_without_end_is_refused() -> None:
    async with served() as port:
        answer = await told(port, b"GET / HTTP/1.1\r\n", *[b"x: " + b"y" * 8000 + b"\r\n"] * 40)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


async def test_what_is_no_http_is_told_so_in_our_shape() -> None:
    async with served() as port:
        answer = await told(port, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":{"message":' in answer


async def test_a_slow_body_and_a_second_request_are_no_slow_heads() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(HEAD + b"he")
            await asyncio.sleep(0.5)
            writer.write(b"llo")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
            # Between two requests only the keep-alive time counts.
            await asyncio.sleep(0.5)
        writer.close()


class Crowded(BoundedProtocol):
    """As the gateway's, with room for two."""

    counted = Connections(2)


async def test_one_connection_too_many_is_told_so_and_makes_room_again() -> None:
    async with served(Crowded) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        refused = await told(port, HEAD + b"hello")
        assert refused.startswith(b"HTTP/1.1 503 ") or refused == b""
        assert b"retry-after: 1" in await told(port)
        for reader, writer in held:
            writer.write(HEAD + b"hello")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 "), "who was there first is served"
        held[0][1].close()
        await held[0][1].wait_closed()
        while Crowded.counted.open > 1:
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"hello")
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
        assert Crowded.counted.refused == {"too_many": 2}
        for _, open_writer in (*held, (reader, writer)):
            open_writer.close()
