"""A crowd of ten times what the replicas can do: what is served, how long it waits, how soon the rest hears no.

    python -m tests.bench.flood [--seconds 30] [--held 1000]

It starts a server on the stub (two replicas, so many milliseconds a picture), measures its capacity, offers ten times
that for a while, and then asks as before. Requests come at their time whether or not others are answered, as a crowd
does. Beside it connections are held open that ask nothing, and /livez is asked. No figure decides anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.server import Server

_STEP_SECONDS, _STEPS, _REPLICAS = 0.0125, 4, 2
_QUEUE = 80
_BODY = b'{"prompt":"one of a crowd","size":"64x64"}'
_REQUEST = b"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_LIVEZ = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


@dataclass
class Crowd:
    """What became of those who asked. Times in seconds; `hints` are Retry-After with the moment they were given."""

    served: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    hints: list[tuple[float, float]] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)


async def answer(port: int, request: bytes) -> tuple[int, dict[str, str], float]:
    """One request on a connection of its own: status, headers, and seconds."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        await reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, time.monotonic() - began
    finally:
        writer.close()


async def ask(port: int, crowd: Crowd) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(60):
            status, headers, seconds = await answer(port, _REQUEST)
    except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
        crowd.other[type(error).__name__] = crowd.other.get(type(error).__name__, 0) + 1
        return
    if status == 200:
        crowd.served.append(seconds)
        queued = float(headers["server-timing"].split("queue;dur=")[1].split(",")[0]) / 1000
        crowd.waits.append((began, queued))
    elif status == 429:
        crowd.refused.append(seconds)
        crowd.hints.append((began, float(headers["retry-after"])))
    else:
        crowd.other[str(status)] = crowd.other.get(str(status), 0) + 1


async def offered(port: int, rate: float, seconds: float) -> Crowd:
    """Ask `rate` times a second, for so long; returns when the last one is answered."""
    crowd = Crowd()
    tasks = set()
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        late = began + number / rate - time.monotonic()
        if late > 0:
            await asyncio.sleep(late)
        task = asyncio.create_task(ask(port, crowd))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return crowd


async def capacity(port: int, seconds: float = 5.0) -> float:
    """Pictures a second when a few ask again as soon as they are answered."""
    crowd = Crowd()
    ends = time.monotonic() + seconds

    async def keep_asking() -> None:
        while time.monotonic() < ends:
            await ask(port, crowd)

    await asyncio.gather(*(keep_asking() for _ in range(3 * _REPLICAS)))
    return len(crowd.served) / seconds


async def held(port: int, count: int) -> list[asyncio.StreamWriter]:
    """So many connections that have been used once and stay open."""
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_LIVEZ)
        await reader.readuntil(b"\r\n\r\n")
        writers.append(writer)
    return writers


async def pulse(port: int, latencies: list[float]) -> None:
    while True:
        _, _, seconds = await answer(port, _LIVEZ)
        latencies.append(seconds)
        await asyncio.sleep(0.02)


def nearest_rank(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


async def measure(port: int, seconds: float, connections: int) -> dict[str, float | int | dict[str, int]]:
    able = await capacity(port)
    writers = await held(port, connections)
    alive: list[float] = []
    beating = asyncio.create_task(pulse(port, alive))
    began = time.monotonic()
    crowd = await offered(port, 10 * able, seconds)
    spent = time.monotonic() - began
    ended = time.monotonic()
    while (await answer(port, _REQUEST))[0] != 200:
        await asyncio.sleep(0.05)
    back = time.monotonic() - ended
    after = await offered(port, able * 0.8, 3.0)
    beating.cancel()
    for writer in writers:
        writer.close()
    # What a request that was let in at that moment waited is the truth that a hint is held against.
    errors = [
        abs(hint - min(60.0, max(1.0, near))) / max(1.0, near)
        for moment, hint in crowd.hints
        if (near := next((wait for began, wait in crowd.waits if abs(began - moment) < 0.1), None)) is not None
    ]
    return {
        "capacity_per_second": round(able, 1),
        "offered_per_second": round(10 * able, 1),
        "goodput_share_of_capacity": round(len(crowd.served) / spent / able, 3),
        "served": len(crowd.served),
        "refused": len(crowd.refused),
        "accepted_p99_seconds": round(nearest_rank(crowd.served, 0.99), 3),
        "queue_bound_seconds": round(_QUEUE / able, 3),
        "refusal_p50_ms": round(1000 * nearest_rank(crowd.refused, 0.5), 2),
        "refusal_p99_ms": round(1000 * nearest_rank(crowd.refused, 0.99), 2),
        "retry_after_median_error": round(statistics.median(errors), 3) if errors else float("nan"),
        "served_again_after_seconds": round(back, 3),
        "after_p99_seconds": round(nearest_rank(after.served, 0.99), 3),
        "after_refused": len(after.refused),
        "held_connections": connections,
        "livez_p99_ms": round(1000 * nearest_rank(alive, 0.99), 2),
        "other": crowd.other | after.other,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the crowd comes")
    parser.add_argument("--held", type=int, default=1000, help="connections that are held beside it")
    asked = parser.parse_args()
    model = f"stub?step_seconds={_STEP_SECONDS}&steps={_STEPS}"
    with tempfile.TemporaryDirectory(prefix="flood", dir="/tmp") as folder:
        place = Path(folder)
        with Server(
            place, place, "--device", f"stub:{_REPLICAS}", "--model", model, max_queue=_QUEUE, max_connections=60_000
        ) as server:
            server.wait_ready()
            port = int(server.address.rpartition(":")[2])
            figures = asyncio.run(measure(port, asked.seconds, asked.held))
            figures["loop_lag_p99_bucket_seconds"] = lag(server)
    json.dump(figures, sys.stdout, indent=2)
    print()


def lag(server: Server) -> float:
    """The least bucket of the loop's lag that holds 99 of 100 of its observations."""
    samples = {
        dict(labels).get("le", ""): count
        for (name, labels), count in server.metrics().items()
        if name == "replicast_loop_lag_seconds_bucket"
    }
    total = samples.get("+Inf", 0.0)
    return min((float(bound) for bound, count in samples.items() if count >= 0.99 * total), default=float("nan"))


if __name__ == "__main__":
    main()
