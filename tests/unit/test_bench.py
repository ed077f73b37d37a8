"""The benchmark's own arithmetic, and that it runs: no figure it finds decides anything."""

import asyncio
import json
import math
import struct
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.load import Plan, Run, Tally, picture, png_size
from tests.bench.report import Case, Measured, percentile

ROOT = Path(__file__).resolve().parents[2]
CASE = Case("50 ms", 4, 0.05, (8,))


def run(server: str, rate: float, seconds: float = 2.0, **more: object) -> Measured:
    """A run of `server` in which every answer took 10 ms."""
    tally = Tally(seconds=seconds, cpu_seconds=seconds / 10, latencies_ms=[10.0] * int(rate * seconds))
    tally.errors = more.get("errors", {})  # type: ignore[assignment]
    return Measured(server, 8, tally, server_cpu_seconds=seconds / 2)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (95, 95), (99, 99), (99.1, 100), (100, 100)]
)
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, percent) == expected


def test_a_percentile_of_few_values_is_one_of_them() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 50) == 1.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert math.isnan(percentile([], 50))


def test_a_row_has_the_median_rate_and_all_the_cpu() -> None:
    runs = [run("ours", rate) for rate in (60, 80, 20)]
    row = report.summarise(CASE, runs)
    assert row.requests == 320
    assert row.rate == 60
    assert row.share == 60 / 80
    assert row.server_cpu_ms == pytest.approx(1000 * 3.0 / 320)
    assert row.client_cpu_ms == pytest.approx(1000 * 0.6 / 320)
    assert row.client_busy == pytest.approx(0.1)
    assert (row.p50_ms, row.p99_ms, row.errors) == (10.0, 10.0, {})


def test_errors_add_up_and_do_not_count_as_answers() -> None:
    bad = run("ours", 0, errors={"status 503": 2})
    row = report.summarise(CASE, [run("ours", 40, errors={"status 503": 1, "length": 1}), bad, bad])
    assert row.errors == {"status 503": 5, "length": 1}
    assert row.requests == 80
    assert row.rate == 0


def test_the_ideal_is_what_the_sleeping_replicas_allow() -> None:
    assert [CASE.ideal(clients) for clients in (1, 4, 64)] == [20, 80, 80]
    assert Case("instant", 4, 0.0, (1,)).ideal(8) == 0
    assert math.isnan(report.summarise(Case("instant", 4, 0.0, (8,)), [run("ours", 60)]).share)


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    ours, theirs = [run("ours", rate) for rate in (90, 40, 30)], [run("plain", rate) for rate in (30, 40, 10)]
    assert report.ratio(ours, theirs) == 3
    assert report.ratio([run("ours", 10)], [run("plain", 0)]) == math.inf


def test_the_tables_and_the_json_hold_every_row() -> None:
    rows = [report.summarise(CASE, [run(name, rate)]) for name, rate in (("ours", 60), ("plain", 30))]
    started = [report.Started("50 ms", 4, "ours", 0.5, 1.25, 50.0, 210.0, 220.0)]
    ratios = {("50 ms", 4, 8): 2.0}
    first, second = report.rates(rows, ratios).splitlines()[2:]
    assert " ".join(first.split()) == "50 ms, 4 replicas, 8 clients ours 60.0 2.00 10.0 10.0 10.0 8.33 1.67 0.75 0"
    assert " ".join(second.split()) == "50 ms, 4 replicas, 8 clients plain 30.0 10.0 10.0 10.0 16.67 3.33 0.38 0"
    assert report.starts(started).splitlines()[2].split()[-5:] == ["0.50", "1.25", "50.0", "210", "220"]
    found = json.loads(json.dumps(report.as_json(rows, started, ratios), allow_nan=False))
    assert found["ratios"] == [{"case": "50 ms", "replicas": 4, "clients": 8, "ratio": 2.0}]
    assert [row["server"] for row in found["rows"]] == ["ours", "plain"]


def png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_a_picture_is_checked_to_its_last_byte() -> None:
    good = png(2, 3, bytes(3 * 7))
    assert png_size(good) == (2, 3)
    with pytest.raises(ValueError, match="damaged"):
        png_size(good.replace(b"\x00\x00\x00\x02\x00\x00\x00\x03", b"\x00\x00\x00\x02\x00\x00\x00\x04"))
    with pytest.raises(ValueError, match="promises"):
        png_size(png(2, 3, bytes(3 * 7 - 1)))
    with pytest.raises(ValueError, match="not a PNG"):
        png_size(b"GIF89a")
    with pytest.raises(ValueError, match="no ImagesResponse"):
        picture(b'{"data":[{}]}')


BODY = b'{"data":[{"b64_json":"AAAA"}]}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("answers", "good", "errors"),
    [
        ([GOOD] * 4, 4, {}),
        ([GOOD, GOOD.replace(b"200 OK", b"503 No"), GOOD, GOOD], 3, {"status 503": 1}),
        ([GOOD, GOOD.replace(b"{", b"<"), GOOD, GOOD], 3, {"not JSON": 1}),
        ([GOOD, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", GOOD, GOOD], 3, {"length": 1}),
        ([GOOD, b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{"], 1, {"connection lost": 1}),
        ([GOOD, GOOD, GOOD, GOOD.replace(b"AAAA", b"AAAB")], 4, {"wrong picture": 1}),
    ],
)
async def test_the_client_sees_what_is_wrong_with_an_answer(
    answers: list[bytes], good: int, errors: dict[str, int]
) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(json.loads(await reader.readexactly(int(head.lower().partition(b"content-length:")[2]))))
            # In two pieces, as it comes from a network.
            writer.write(answer[:20])
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(answer[20:])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        plan = Plan(port, 1, seconds=5.0, requests=4, length=len(BODY), sha256=sha256(bytes(3)).hexdigest())
        tally = await Run(plan).drive()
    assert (len(tally.latencies_ms), tally.errors) == (good, errors)
    assert len({len(str(wish["seed"])) for wish in asked}) == 1
    assert len({wish["seed"] for wish in asked}) == len(asked)
    assert all(ms >= 10 for ms in tally.latencies_ms)


@pytest.mark.process
def test_the_whole_bench_runs_at_its_smallest(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.bench", "--only", "50 ms, 1", "--clients", "2", "--json", str(out)]
    ran = subprocess.run(
        [*command, "--seconds", "0.3", "--rounds", "1"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(out.read_text())
    assert [(row["server"], row["clients"], row["errors"]) for row in found["rows"]] == [
        ("replicast", 2, {}),
        ("plain", 2, {}),
    ]
    assert all(row["requests"] > 0 for row in found["rows"])
    assert [start["server"] for start in found["starts"]] == ["replicast", "plain"]
    assert "50 ms, 1 replica, 2 clients" in ran.stdout
