"""A server under measurement: started, asked whether it is there, weighed, and stopped with all its processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.load import FIRST_SEED, PATH, body

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.005


class ServerFailed(Exception):
    """A server did not start, or ended by itself; the message has its last words."""


@dataclass(frozen=True)
class Memory:
    """Megabytes: of the process that listens, and of all of them together. Shared pages are counted once, on Linux."""

    listener: float
    all: float


@dataclass
class Server:
    """A running one. Start times are in seconds from exec."""

    name: str
    port: int
    processes: list[psutil.Process]
    live_seconds: float
    ready_seconds: float

    def cpu_seconds(self) -> float:
        """What its processes have used, user and system, since they began."""
        return sum(_cpu_seconds(process) for process in self.processes)

    def memory(self) -> Memory:
        """What its processes hold now."""
        sizes = [_memory_mb(process) for process in self.processes]
        return Memory(listener=sizes[0], all=sum(sizes))

    def answer(self) -> bytes:
        """The body of one answer, asked like any other. Raises ServerFailed."""
        return _ask(self.port, "POST", PATH, body(FIRST_SEED))


@contextlib.contextmanager
def replicast(folder: Path, replicas: int, step_seconds: float, tree: Path = ROOT) -> Iterator[Server]:
    """Replicast of the checkout `tree`, as a user would start it; ready is when every replica is."""
    model = "stub?constant=true"
    if step_seconds:
        model += f"&step_seconds={step_seconds}&steps=1"
    data = folder / f"data-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "gateway", "serve", "--num-gpus", str(replicas), "--device", "cpu"]
    command += ["--model", model, "--data-dir", str(data)]

    def ready(port: int) -> bool:
        story = json.loads(_ask(port, "GET", "/readyz"))
        return bool(story["models"]["stub"]["replicas_ready"] == replicas)

    with _running("replicast", command, tree, data.with_suffix(".log"), ready) as server:
        yield server


@contextlib.contextmanager
def peer(folder: Path, replicas: int, step_seconds: float, png: Path) -> Iterator[Server]:
    """The plain program of peers.py; ready is when it answers at all."""
    command = [sys.executable, "-m", "tests.bench.peers", "--replicas", str(replicas)]
    command += ["--step-seconds", str(step_seconds), "--png", str(png)]
    log = folder / f"peer-{time.monotonic_ns()}.log"
    with _running("plain", command, ROOT, log, lambda port: True) as server:
        yield server


@contextlib.contextmanager
def _running(name: str, command: list[str], tree: Path, log: Path, ready: Callable[[int], bool]) -> Iterator[Server]:
    port = _free_port()
    with log.open("wb") as out:
        began = time.monotonic()
        child = subprocess.Popen(
            [*command, "--port", str(port)], cwd=tree, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    tree_of = [psutil.Process(child.pid)]
    try:
        live = _until(lambda: bool(_ask(port, "GET", "/livez")), child, log) - began
        whole = _until(lambda: bool(ready(port)), child, log) - began
        tree_of += tree_of[0].children(recursive=True)
        yield Server(name, port, tree_of, live, whole)
        if child.poll() is not None:
            raise ServerFailed(_last_words(name, child, log))
    finally:
        _stop(child, tree_of)


def _until(true: Callable[[], bool], child: subprocess.Popen[bytes], log: Path) -> float:
    """The moment when `true` first is; a refusal to answer is no."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException, ServerFailed):
            if true():
                return time.monotonic()
        time.sleep(_LOOK_SECONDS)
    raise ServerFailed(_last_words("the server", child, log))


def _stop(child: subprocess.Popen[bytes], processes: list[psutil.Process]) -> None:
    """Ask, wait, kill, reap; what it started goes too."""
    processes = [*processes, *(p for p in _children(processes[0]) if p not in processes)]
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_STOP_SECONDS)
    for process in psutil.wait_procs(processes, timeout=1.0)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    child.wait(_STOP_SECONDS)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _last_words(name: str, child: subprocess.Popen[bytes], log: Path) -> str:
    words = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    return f"{name} is not there (exit status {child.poll()}):\n{words}"


def _ask(port: int, method: str, path: str, content: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, content, {"content-type": "application/json"} if content else {})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise ServerFailed(f"{path}: {response.status} {answer[:500]!r}")
        return answer
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process; by its own clock where that can be read: psutil.s figures come in ticks of 10 ms."""
    if sys.platform == "linux":
        # clock_getcpuclockid(3), which Python does not have.
        return time.clock_gettime((~process.pid << 3) | 2)
    times = process.cpu_times()
    return times.user + times.system


def _memory_mb(process: psutil.Process) -> float:
    held = process.memory_full_info().pss if sys.platform == "linux" else process.memory_info().rss
    return held / 1e6
