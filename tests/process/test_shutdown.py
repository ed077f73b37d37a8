"""Told to leave, a server finishes what it has accepted, takes nothing new, and leaves at once if told again."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.adapters import layers
from tests.server import Serve, until
from worker.backends import stub

BOTH = pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT], ids=lambda told: told.name)


@BOTH
def test_a_server_told_to_leave_finishes_what_it_has(
    serve: Serve, clients: ThreadPoolExecutor, gate: Path, told: signal.Signals
) -> None:
    server = serve("--device", "stub:1", "--model", f"stub?gate={gate}")
    running = clients.submit(server.draw, prompt="a swan", seed=1)
    until(lambda: server.jobs() == {"stub0": 1}, "the request runs")
    waiting = [clients.submit(server.draw, prompt="a swan", seed=seed) for seed in (2, 3)]
    until(lambda: server.metric("replicast_jobs") == 3, "two more wait")
    server.signal(told)
    story = until(lambda: (s := server.readyz())["status"] == "draining" and s, "it is draining")
    assert story
    assert server.http.get("/readyz").status_code == 503
    assert server.http.get("/livez").status_code == 200
    late = server.post(prompt="a duck")
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "draining"
    assert int(late.headers["retry-after"]) > 0
    assert server.status is None
    gate.touch()
    for seed, request in enumerate((running, *waiting), 1):
        [picture] = request.result(60.0)
        assert stub.read_back(picture)["seed"] == seed
    assert server.wait() == 0


@BOTH
@pytest.mark.parametrize("fault", ["gate=nowhere", "hang_at_step=1"])
def test_a_server_told_twice_leaves_at_once(
    serve: Serve, clients: ThreadPoolExecutor, fault: str, told: signal.Signals
) -> None:
    server = serve("--device", "stub:2", "--model", f"stub?{fault}")
    running = clients.submit(server.post, prompt="a swan", n=2)
    until(lambda: list(server.jobs().values()) == [1, 1], "both workers draw")
    server.signal(told)
    until(lambda: server.readyz()["status"] == "draining", "it is draining")
    server.signal(told)
    again = time.monotonic()
    assert server.wait() == 0
    assert time.monotonic() - again < 2.0
    answer = running.result(10.0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


def test_a_request_that_outlives_the_time_to_drain_is_answered(
    serve: Serve, clients: ThreadPoolExecutor, gate: Path
) -> None:
    server = serve("--device", "stub:1", "--model", f"stub?gate={gate}", drain_seconds=0.2)
    running = clients.submit(server.post, prompt="a swan")
    until(lambda: server.jobs() == {"stub0": 1}, "the request runs")
    waiting = [clients.submit(server.post, prompt="a swan") for _ in range(2)]
    until(lambda: server.metric("replicast_jobs") == 3, "two more wait")
    server.signal(signal.SIGTERM)
    for request in (running, *waiting):
        answer = request.result(60.0)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "draining"
    assert server.wait() == 0


def test_a_server_that_is_loading_leaves_when_told(serve: Serve) -> None:
    server = serve("--device", "stub:2", "--model", "stub?load_seconds=60", ready=False)
    until(lambda: list(server.jobs().values()) == [0, 0], "both workers are loading")
    told = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - told < 15.0


def test_a_quarantined_worker_does_not_keep_a_server_from_leaving(serve: Serve) -> None:
    server = serve("--device", "stub:2", restart_limit=2, restart_backoff_seconds=0, quarantine_seconds=600)

    def state() -> str:
        return str(server.readyz()["workers"]["stub0"]["state"])

    for _ in range(2):
        until(server.whole, "it is there")
        os.kill(server.workers()["stub0"], signal.SIGKILL)
        until(lambda: state() != "ready", "it is gone")
    until(lambda: state() == "quarantined", "it is left alone")
    server.draw(prompt="by the other")
    told = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - told < 4.0


def test_an_idle_connection_does_not_keep_a_server_from_leaving(serve: Serve) -> None:
    server = serve("--device", "stub:1")
    assert server.http.get("/livez").status_code == 200  # and the connection stays open
    told = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - told < 5.0


@pytest.mark.parametrize(("seconds", "status"), [(30, 200), (0.5, 503)], ids=["in time", "too late"])
def test_a_change_of_loras_is_finished_or_told_that_there_was_no_time(
    serve: Serve, clients: ThreadPoolExecutor, tmp_path: Path, seconds: float, status: int
) -> None:
    (tmp_path / "ink.safetensors").write_bytes(layers())
    server = serve(
        *("--device", "stub:2", "--model", "stub?prepare_seconds=3", "--lora-root", str(tmp_path)),
        drain_seconds=seconds,
    )
    asked = {"lora_nickname": "ink", "lora_path": "ink.safetensors"}
    running = clients.submit(server.http.post, "/v1/set_lora", json=asked)
    until(lambda: server.http.get("/v1/list_loras").json()["pending"], "replicas are asked")
    server.signal(signal.SIGTERM)
    until(lambda: server.readyz()["status"] == "draining", "it is draining")
    late = server.http.post("/v1/set_lora", json=asked)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
    answer = running.result(30.0)
    assert answer.status_code == status, answer.text
    if status == 503:
        assert answer.json()["error"]["code"] == "draining"
    assert server.wait() == 0
    assert "Traceback" not in server.log
