"""A gateway that is killed leaves nobody behind, and one data folder or port has one gateway."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.server import START_SECONDS, Serve, Server, command, environment, until


def refused(runtime: Path, *args: str) -> str:
    """What a start that must be refused says: one line, and exit status 2."""
    ended = subprocess.run(
        command("serve", "--device", "stub:1", *args),
        env=environment(runtime),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize("while_", ["drawing", "hanging", "loading"])
def test_no_worker_outlives_a_killed_gateway(
    serve: Serve,
    clients: ThreadPoolExecutor,
    tmp_path: Path,
    gate: Path,
    while_: str,
    record_property: Callable[[str, object], None],
) -> None:
    options = {"drawing": f"?gate={gate}", "hanging": "?hang_at_step=1", "loading": "?load_seconds=60"}
    model = f"stub{options.get(while_, '')}"
    data_dir = tmp_path / "data"
    server = serve("--device", "stub:2", "--model", model, data_dir=data_dir, ready=while_ != "loading")
    answer = None
    if while_ in ("drawing", "hanging"):
        answer = clients.submit(server.post, prompt="a crow", n=2)
        until(lambda: list(server.jobs().values()) == [1, 1], "both workers have a job in hand")
    if while_ == "loading":
        until(lambda: list(server.jobs().values()) == [0, 0], "both workers are loading")
    assert server.metric("replicast_term") == 1
    workers = [psutil.Process(pid) for pid in server.workers().values()]
    assert len(workers) == 2
    server.signal(signal.SIGKILL)
    server.wait()
    killed = time.monotonic()
    until(lambda: not any(map(alive, workers)), "no worker is left", 2.0)
    record_property("seconds", round(time.monotonic() - killed, 3))
    if answer:
        with pytest.raises(httpx2.TransportError):
            answer.result(10.0)
    again = serve("--device", "stub:2", data_dir=data_dir, ready=False)
    assert again.metric("replicast_term") == 2
    if while_ == "drawing":
        again.wait_ready().draw(prompt="a crow")


def test_a_second_gateway_on_a_data_folder_is_refused(serve: Serve, runtime: Path) -> None:
    server = serve("--device", "stub:1")
    said = refused(runtime, "--port", "0", "--data-dir", str(server.data_dir))
    assert "--data-dir" in said
    assert str(server.pid) in said
    server.draw(prompt="a wren")
    assert server.event("worker_lost") == 0


def test_a_port_that_is_taken_is_refused(serve: Serve, runtime: Path, tmp_path: Path) -> None:
    server = serve("--device", "stub:1")
    port = server.address.rpartition(":")[2]
    said = refused(runtime, "--port", port, "--data-dir", str(tmp_path / "other"))
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said
    server.draw(prompt="a wren")


def test_of_two_gateways_started_at_once_on_a_port_one_serves(
    runtime: Path, tmp_path: Path, make_port: Callable[[], int]
) -> None:
    # They meet between the bind of the first and its listening more often than not.
    port = make_port()
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with (
        Server(folders[0], runtime, "--device", "stub:1", "--port", str(port)) as one,
        Server(folders[1], runtime, "--device", "stub:1", "--port", str(port)) as two,
    ):
        until(lambda: one.status is not None or two.status is not None, "one of them gives up")
        loser, winner = (one, two) if one.status is not None else (two, one)
        assert loser.wait() == 2, loser.log
        assert "--port" in loser.log
        winner.wait_ready().draw(prompt="a wren")
        assert winner.stop() == 0


def test_a_data_folder_that_cannot_be_used_is_refused(runtime: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert "--data-dir" in refused(runtime, "--port", "0", "--data-dir", str(in_the_way))


def test_a_socket_path_that_is_too_long_is_refused(runtime: Path, tmp_path: Path) -> None:
    long = runtime / ("x" * 100)
    long.mkdir()
    try:
        said = refused(long, "--port", "0", "--data-dir", str(tmp_path / "data"))
    finally:
        long.rmdir()
    assert "XDG_RUNTIME_DIR" in said


@pytest.fixture
def make_port() -> Callable[[], int]:
    """Finds a port that nobody listens on right now."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
