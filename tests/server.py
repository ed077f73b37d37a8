"""A real server for tests: `replicast serve` with its workers, started, watched and ended by who asks for it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import httpx2
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
# Long enough for two cores that others keep busy; no test waits that long for what works.
START_SECONDS = 90.0
STOP_SECONDS = 40.0
WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_NOBODYS_PORT = 1
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

_T = TypeVar("_T")


def until(condition: Callable[[], _T], what: str, seconds: float = WAIT_SECONDS) -> _T:
    """What `condition` returns as soon as that is true; fails saying `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}; last seen: {found!r}")
        time.sleep(_LOOK_SECONDS)
    return found


def processes(runtime: Path) -> list[psutil.Process]:
    """Every living process that was started with this runtime folder in its environment: gateways and workers."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(str(runtime) in value for value in process.environ().values()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def environment(runtime: Path, **settings: object) -> dict[str, str]:
    """The environment of a `replicast` command: its sockets in `runtime`, and these settings as REPLICAST_ variables.

    Its usual port is one where nobody listens, so that it never talks to a developer's own server.
    """
    settings = {"port": _NOBODYS_PORT, **settings}
    passed = {name: value for name, value in os.environ.items() if not name.startswith("REPLICAST_")}
    named = {f"REPLICAST_{name.upper()}": str(value) for name, value in settings.items()}
    return passed | {"XDG_RUNTIME_DIR": str(runtime)} | named


def command(*args: str, program: Sequence[str] = ("gateway",)) -> list[str]:
    """A `replicast` command line; `program` is a module that stands in for it, and what that wants to be told first."""
    return [sys.executable, "-m", *program, *args]


class Server:
    """One gateway process. A context manager: when its block ends, so have the gateway and its workers.

    `folder` takes its output; `runtime` its socket folder, as XDG_RUNTIME_DIR; `settings` are REPLICAST_ variables by
    their lower-case names. `program` is as for `command`.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Path,
        *args: str,
        data_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = ("gateway",),
        **settings: object,
    ) -> None:
        self.data_dir = data_dir or folder / "data"
        self.runtime = runtime
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._command = command("serve", "--port", "0", "--data-dir", str(self.data_dir), *args, program=program)
        self._env = environment(runtime, **settings) | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._http: httpx2.Client | None = None
        self.started = 0.0

    def __enter__(self) -> Self:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.started = time.monotonic()
            # A session of its own: Ctrl-C is for pytest, which then ends this server.
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._env, stdout=out, stderr=err, start_new_session=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.status is None:
                self.signal(number)
                try:
                    self._popen.wait(5.0)
                except subprocess.TimeoutExpired:
                    continue
        if self._http is not None:
            self._http.close()

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not started"
        return self._process

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """Its standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def log(self) -> str:
        """Its standard error so far: its own lines and those of its workers."""
        return self._err.read_text(errors="replace")

    @property
    def address(self) -> str:
        """Where it listens; waits until it says so."""
        found = until(lambda: self._said(r"^  Replicast  (http://\S+)$"), "an address", START_SECONDS)
        return found[1]

    def wait_ready(self) -> Self:
        """Until it has said `ready`, and every worker is. Fails at once where a model cannot be loaded."""
        said = until(lambda: self._said(r"^ready (http://\S+)$") or self._hopeless(), "the ready line", START_SECONDS)
        assert not isinstance(said, str), f"the server cannot become ready: {said}\n{self.log}"
        assert said[1] == self.address
        until(self.whole, "every worker ready", START_SECONDS)
        return self

    def whole(self) -> bool:
        """Whether every worker is ready, in step and not suspect."""
        workers = self.readyz()["workers"].values()
        return all(w["state"] == "ready" and w["in_step"] and not w["suspect"] for w in workers)

    def _said(self, line: str) -> re.Match[str] | None:
        if self.status is not None:
            pytest.fail(f"the server ended with exit status {self.status}\n{self.output}\n{self.log}")
        return re.search(line, self.output, re.MULTILINE)

    def _hopeless(self) -> str:
        """Why no model of this server will ever be ready, as far as it says so; nothing while there is hope."""
        if not self._said(r"^  Replicast "):
            return ""
        story = self.readyz()
        if any(worker["state"] in ("starting", "loading", "backing_off") for worker in story["workers"].values()):
            return ""
        if any(model["ready"] for model in story["models"].values()):
            return ""
        return "; ".join(f"{name}: {model['reason']}" for name, model in story["models"].items())

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM; its exit status when it has ended."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit status when it has ended."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server did not end within {seconds} s\n{self.log}")

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def workers(self) -> dict[str, int]:
        """The process id of every living worker, by its name."""
        found = {}
        try:
            children = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return {}
        for child in children:
            try:
                if child.status() != psutil.STATUS_ZOMBIE and (name := child.environ().get("REPLICAST_WORKER_NAME")):
                    found[name] = child.pid
            except (psutil.Error, OSError):
                continue
        return found

    # HTTP

    @property
    def http(self) -> httpx2.Client:
        """A client for this server, safe to share between threads."""
        if self._http is None:
            limits = httpx2.Limits(max_connections=200)
            # The machine's proxies are not for 127.0.0.1.
            self._http = httpx2.Client(base_url=self.address, timeout=90.0, trust_env=False, limits=limits)
        return self._http

    def readyz(self) -> dict[str, Any]:
        story: dict[str, Any] = self.http.get("/readyz").json()
        return story

    def jobs(self) -> dict[str, int]:
        """The jobs in hand of each worker that is there, by its name."""
        return {name: worker["jobs"] for name, worker in self.readyz()["workers"].items() if "jobs" in worker}

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of /metrics by its name and labels."""
        return dict(_samples(self.http.get("/metrics").text))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0 where there is none."""
        return sum(v for (n, has), v in self.metrics().items() if n == name and labels.items() <= dict(has).items())

    def event(self, name: str) -> int:
        """How often the pool has noted this event."""
        return int(self.metric("replicast_events_total", event=name))

    def post(self, **body: object) -> httpx2.Response:
        """POST /v1/images/generations."""
        return self.http.post("/v1/images/generations", json=body)

    def draw(self, **body: object) -> list[bytes]:
        """The pictures of a request that must succeed."""
        answer = self.post(**body)
        assert answer.status_code == 200, answer.text
        return [base64.b64decode(row["b64_json"]) for row in answer.json()["data"]]


def ask_and_hold(server: Server, **body: object) -> socket.socket:
    """A request on a connection of its own, whose answer nobody reads."""
    host, port = server.address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 10.0)
    content = json.dumps(body).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


class Serve(Protocol):
    """Starts a server with these flags and REPLICAST_ settings; it has ended when the test has.

    By default it is whole when this returns; with `ready=False` it listens.
    """

    def __call__(
        self,
        *args: str,
        ready: bool = True,
        data_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        **settings: object,
    ) -> Server: ...


def _samples(text: str) -> Iterator[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
    for line in text.splitlines():
        if not line.startswith("#"):
            sample = _SAMPLE.fullmatch(line)
            assert sample, f"no sample: {line!r}"
            yield (sample[1], frozenset(_LABEL.findall(sample[2] or ""))), float(sample[3])
