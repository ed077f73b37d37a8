"""`make bench`: Replicast beside a plain FastAPI program on the same work, in turns, as one table."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.bench import report, servers
from tests.bench.load import Tally, picture, png_size
from tests.bench.report import Case, Measured, Row, Started
from tests.bench.servers import ROOT, Server

# One replica with 64 clients would only measure a queue of three seconds.
CASES = (
    Case("instant", 4, 0.0, (1, 8, 64)),
    Case("50 ms", 4, 0.05, (1, 8, 64)),
    Case("50 ms", 1, 0.05, (1, 8)),
)
QUICK = (Case("instant", 4, 0.0, (8, 64)), Case("50 ms", 4, 0.05, (8, 64)))
_CLIENT_GRACE_SECONDS = 90.0
_VERSIONS = ("replicast", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic", "pyzmq")


def main() -> None:
    """Measure what the command line asks for, and print it."""
    told = _arguments()
    # A caller's SIGTERM ends us like Ctrl-C, through every `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name in [name for name in os.environ if name.startswith("REPLICAST_")]:
        del os.environ[name]
    cases = [
        case if told.clients is None else replace(case, clients=tuple(told.clients))
        for case in (QUICK if told.quick else CASES)
        if told.only is None or told.only in f"{case.name}, {case.replicas}"
    ]
    print(_machine(), flush=True)
    bench = Bench(told.seconds, told.requests, told.rounds, told.against)
    with tempfile.TemporaryDirectory(prefix="rbench-") as folder:
        for case in cases:
            bench.measure(case, Path(folder))
    print(f"\n{report.rates(bench.rows, bench.ratios)}\n\n{report.starts(bench.started)}\n{_LEGEND}")
    if told.json:
        found = report.as_json(bench.rows, bench.started, bench.ratios)
        told.json.write_text(json.dumps({"machine": _machine(), "command": sys.argv[1:], **found}, indent=1) + "\n")
    if any(row.errors for row in bench.rows):
        sys.exit(1)


_LEGEND = """
ratio: our requests/s over the other's, median of rounds. CPU ms: a server's processes together, per request. client:
the client's own CPU, as well. of ideal: share of min(clients, replicas) / sleep. Memory is PSS. Read the ratios."""


class Bench:
    """The rows gathered so far."""

    def __init__(self, seconds: float, requests: int, rounds: int, against: Path | None) -> None:
        self._seconds, self._requests, self._rounds, self._against = seconds, requests, rounds, against
        self.rows: list[Row] = []
        self.started: list[Started] = []
        self.ratios: report.Ratios = {}

    def measure(self, case: Case, folder: Path) -> None:
        """Both servers up, every number of clients in turns; the idle one costs the other next to nothing."""
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(servers.replicast(folder, case.replicas, case.step_seconds))
            png = picture(ours.answer())
            if png_size(png) != (512, 512):
                raise servers.ServerFailed("the constant picture is not 512x512")
            theirs = stack.enter_context(self._other(case, folder, png))
            pair = (ours, theirs)
            shapes = {server.name: self._shape(server, png) for server in pair}
            idle = {server.name: server.memory() for server in pair}
            for clients in case.clients:
                runs: dict[str, list[Measured]] = {server.name: [] for server in pair}
                for server in pair:
                    _run(server, clients, 0.2, clients, shapes[server.name])
                for _ in range(self._rounds):
                    for server in pair:
                        measured = _run(server, clients, self._seconds, self._requests, shapes[server.name])
                        runs[server.name].append(measured)
                self.rows += [report.summarise(case, runs[server.name]) for server in pair]
                key = (case.name, case.replicas, clients)
                self.ratios[key] = report.ratio(runs[ours.name], runs[theirs.name])
                _say(f"{case.name}, {case.replicas}, {clients}: {self.ratios[key]:.2f}")
            for server in pair:
                at_rest = idle[server.name]
                self.started.append(
                    Started(
                        case.name,
                        case.replicas,
                        server.name,
                        server.live_seconds,
                        server.ready_seconds,
                        at_rest.listener,
                        at_rest.all,
                        server.memory().all,
                    )
                )

    def _other(self, case: Case, folder: Path, png: bytes) -> contextlib.AbstractContextManager[Server]:
        if self._against:
            return _renamed(servers.replicast(folder, case.replicas, case.step_seconds, self._against))
        path = folder / "constant.png"
        path.write_bytes(png)
        return servers.peer(folder, case.replicas, case.step_seconds, path)

    @staticmethod
    def _shape(server: Server, png: bytes) -> tuple[int, str]:
        """The length that each body of this server must have, and the hash of the picture in it."""
        answer = server.answer()
        if picture(answer) != png:
            raise servers.ServerFailed(f"{server.name} does not serve the same picture")
        return len(answer), hashlib.sha256(png).hexdigest()


@contextlib.contextmanager
def _renamed(other: contextlib.AbstractContextManager[Server]) -> Iterator[Server]:
    with other as server:
        yield replace(server, name="other")


def _run(server: Server, clients: int, seconds: float, requests: int, shape: tuple[int, str]) -> Measured:
    """One run by a client process of its own."""
    length, sha256 = shape
    options = {"port": server.port, "clients": clients, "seconds": seconds, "requests": requests, "length": length}
    command = [sys.executable, "-m", "tests.bench.load", "--sha256", sha256]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    cpu = server.cpu_seconds()
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=seconds + _CLIENT_GRACE_SECONDS)
    return Measured(server.name, clients, Tally(**json.loads(ran.stdout)), server.cpu_seconds() - cpu)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, help="length of one run  [3; quick: 0.7]")
    parser.add_argument("--requests", type=int, default=100_000, help="most requests of one run  [100000]")
    parser.add_argument("--rounds", type=int, help="runs of each server in each cell  [3; quick: 2]")
    parser.add_argument("--clients", type=int, nargs="+", help="numbers of clients  [1 8 64]")
    parser.add_argument("--only", help="only the cases whose name has this in it, such as 'instant' or '50 ms, 4'")
    parser.add_argument("--quick", action="store_true", help="under 45 seconds, and as much rougher")
    parser.add_argument("--against", type=Path, help="another checkout of Replicast in place of the plain program")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    told = parser.parse_args()
    told.seconds = told.seconds or (0.7 if told.quick else 3.0)
    told.rounds = told.rounds or (2 if told.quick else 3)
    return told


def _machine() -> str:
    """What kind of machine this is, and how busy before we began; nothing that names it."""
    load = os.getloadavg()[0]
    made = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores {platform.machine()}, {platform.system()}, "
        f"Python {platform.python_version()}, load before {load:.1f}\n{made}"
    )


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
