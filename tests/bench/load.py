"""A closed-loop client in a process of its own: so many connections, each asks again as soon as it has its answer.

It is written to cost little, since it shares the machine with what it measures: one buffer a connection, filled by the
kernel, and nothing of an answer is looked at but its head, its length and its two ends. The last one is decoded.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

PATH = "/v1/images/generations"
# Ten digits each, so that every answer has the same length, and no two requests of a run are the same.
FIRST_SEED = 1_000_000_000
_HANG_SECONDS = 60.0
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Plan:
    """One run. It ends after `seconds` or `requests`, whichever comes first; what was asked by then is waited for."""

    port: int
    clients: int
    seconds: float
    requests: int
    length: int
    sha256: str


@dataclass
class Tally:
    """What a run brought. `seconds` is from the first request to the last answer; latencies of good answers only."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)


def body(seed: int, model: str = "stub") -> bytes:
    """What every client asks."""
    wish = {"model": model, "prompt": "a red circle on a blue background", "size": "512x512", "seed": seed}
    return json.dumps(wish).encode()


def picture(answer: bytes) -> bytes:
    """The one encoded picture in an answer's body. Raises ValueError if the body is not what it should be."""
    try:
        (data,) = json.loads(answer)["data"]
        return base64.b64decode(data["b64_json"], validate=True)
    except (KeyError, TypeError) as error:
        raise ValueError("the body is no ImagesResponse of one picture") from error


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of an RGB PNG, after every chunk and every pixel byte was checked. Raises ValueError."""
    if not png.startswith(_PNG):
        raise ValueError("not a PNG")
    chunks = list(_chunks(png))
    if chunks[0][0] != b"IHDR" or chunks[-1][0] != b"IEND":
        raise ValueError("the PNG has no head or no end")
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[0][1])
    pixels = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    if (depth, colour) != (8, 2) or len(pixels) != height * (1 + 3 * width):
        raise ValueError("the PNG does not hold the pixels it promises")
    return width, height


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        data, (crc,) = png[at + 8 : at + 8 + length], struct.unpack_from(">I", png, at + 8 + length)
        if zlib.crc32(kind + data) != crc:
            raise ValueError(f"the chunk {kind!r} of the PNG is damaged")
        yield kind, data
        at += length + 12


class Connection(asyncio.BufferedProtocol):
    """One keep-alive connection, and so one client."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = bytearray(run.plan.length + 4096)
        self._view = memoryview(self._buffer)
        self._filled = self._end = self._head = 0
        self._asked = 0.0
        self.waiting = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self) -> None:
        """Send the next request, or rest if there is none."""
        request = self._run.next_request()
        if request is None:
            self._run.rested(self)
            return
        self._filled = self._end = 0
        self.waiting = True
        self._asked = time.perf_counter()
        self._transport.write(request)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if not self._end:
            self._head = self._buffer.find(b"\r\n\r\n", 0, min(self._filled, 4096)) + 4
            if self._head < 4:
                return
            self._end = self._head + _content_length(bytes(self._view[: self._head]))
        # A body that is longer than it may be fills the buffer, and is never waited for.
        if self._filled >= min(self._end, len(self._buffer)):
            self._answered()

    def _answered(self) -> None:
        took_ms = (time.perf_counter() - self._asked) * 1000
        self.waiting = False
        problem = self._problem()
        if problem:
            self._run.failed(problem)
        else:
            self._run.answered(took_ms)
            self._run.last = self
        if self._end > len(self._buffer):
            self._transport.abort()
        else:
            self.ask()

    def _problem(self) -> str:
        status = bytes(self._view[9:12]).decode("latin-1")
        if status != "200":
            return f"status {status}"
        if self._end - self._head != self._run.plan.length or self._filled != self._end:
            return "length"
        if self._buffer[self._head] != ord("{") or self._buffer[self._end - 1] != ord("}"):
            return "not JSON"
        return ""

    def body(self) -> bytes:
        """The body of the last answer."""
        return bytes(self._view[self._head : self._end])

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self._run.failed("connection lost")
        self._run.lost(self)


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


class Run:
    """The clients of one run, and what they have seen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.last: Connection | None = None
        self._errors: Counter[str] = Counter()
        self._seeds = count(FIRST_SEED)
        self._asked = 0
        self._ends = 0.0
        self._ended = 0.0
        self._busy: set[Connection] = set()

    async def drive(self) -> Tally:
        """Connect all clients, start them together, and wait until each has its last answer."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        made = [
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.plan.port)
            for _ in range(self.plan.clients)
        ]
        connections = [connection for _, connection in made]
        self._busy = set(connections)
        cpu, began = time.process_time(), time.perf_counter()
        self._ends = self._ended = began
        self._ends += self.plan.seconds
        for connection in connections:
            connection.ask()
        try:
            await asyncio.wait_for(self._over, self.plan.seconds + _HANG_SECONDS)
        except TimeoutError:
            self._errors["no answer"] += len(self._busy)
        self.tally.cpu_seconds = time.process_time() - cpu
        self.tally.seconds = self._ended - began
        if (
            self.last
            and not self.last.waiting
            and hashlib.sha256(_picture(self.last.body())).hexdigest() != self.plan.sha256
        ):
            self._errors["wrong picture"] += 1
        self.tally.errors = dict(self._errors)
        for transport, _ in made:
            transport.abort()
        return self.tally

    def next_request(self) -> bytes | None:
        if self._asked >= self.plan.requests or time.perf_counter() >= self._ends:
            return None
        self._asked += 1
        content = body(next(self._seeds))
        return (
            b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (PATH.encode(), len(content), content)
        )

    def answered(self, took_ms: float) -> None:
        self.tally.latencies_ms.append(took_ms)
        self._ended = time.perf_counter()

    def failed(self, problem: str) -> None:
        self._errors[problem] += 1

    def rested(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if not self._busy and not self._over.done():
            self._over.set_result(None)

    def lost(self, connection: Connection) -> None:
        """A client that loses its connection has failed, and asks no more: nothing here should ever lose one."""
        self.rested(connection)


def _picture(answer: bytes) -> bytes:
    try:
        return picture(answer)
    except ValueError:
        return b""


def main() -> None:
    """Make the run that the command line describes and print its tally as one line of JSON."""
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("clients", int), ("seconds", float), ("requests", int), ("length", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--sha256", required=True)
    plan = Plan(**vars(parser.parse_args()))
    tally = asyncio.run(Run(plan).drive())
    sys.stdout.write(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main()
