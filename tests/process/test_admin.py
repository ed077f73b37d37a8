"""Workers drained, restarted, added and dismissed on a running server, while clients notice nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.server import Serve, Server, environment, until

pytestmark = pytest.mark.process


def told(server: Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{server.address}/v1/admin/{path}", None if path == "workers" else json.dumps(body or {}).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        said: dict[str, Any] = json.load(answer)
        return said


def workers(server: Server) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in told(server, "workers")["data"]}


def states(server: Server) -> dict[str, str]:
    return {name: row["state"] for name, row in workers(server).items()}


def renewed(server: Server, name: str, pid: int) -> bool:
    row = workers(server)[name]
    return row["state"] == "ready" and row["pid"] != pid


def test_each_worker_is_restarted_in_turn_and_no_request_is_lost(serve: Serve, clients: ThreadPoolExecutor) -> None:
    server = serve("--device", "stub:2", "--model", "stub?step_seconds=0.01")
    going = True

    def ask(client: int) -> int:
        made = 0
        while going:
            assert server.draw(prompt=f"client {client}", seed=made)
            made += 1
        return made

    running = [clients.submit(ask, client) for client in range(4)]
    for name in ("stub0", "stub1"):
        pid = workers(server)[name]["pid"]
        told(server, f"workers/{name}/restart")
        until(lambda name=name, pid=pid: renewed(server, name, pid), f"{name} started anew")
    going = False
    assert sum(client.result(timeout=60) for client in running) > 8
    assert all(row["restarts"] == 1 and row["last_error"] is None for row in workers(server).values())


def test_a_drained_worker_finishes_and_stays_away_until_it_is_restarted(
    serve: Serve, clients: ThreadPoolExecutor, gate: Path
) -> None:
    server = serve("--device", "stub:1", "--model", f"stub?gate={gate}")
    answer = clients.submit(server.draw, prompt="the last", seed=3)
    until(lambda: workers(server)["stub0"]["jobs"], "the job in its hands")
    [job] = workers(server)["stub0"]["jobs"]
    assert (job["model"], job["attempt"]) == ("stub", 1)
    told(server, "workers/stub0/drain")
    assert states(server)["stub0"] == "draining"
    gate.touch()
    assert answer.result(timeout=30)
    until(lambda: states(server) == {"stub0": "drained"}, "drained")
    assert server.post(prompt="too late").status_code == 503
    told(server, "workers/stub0/restart")
    until(lambda: states(server) == {"stub0": "ready"}, "ready")
    assert server.draw(prompt="again", seed=1)


def test_more_and_fewer_by_the_command(serve: Serve, clients: ThreadPoolExecutor) -> None:
    server = serve("--device", "stub:1", "--model", "stub?step_seconds=0.05&steps=10")

    def scale(replicas: int) -> None:
        command = [sys.executable, "-m", "gateway", "scale", str(replicas), "--url", server.address]
        done = subprocess.run(command, env=environment(server.runtime), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "stub0" in done.stdout

    scale(3)
    until(lambda: states(server) == dict.fromkeys(("stub0", "stub1", "stub2"), "ready"), "three of them")
    answers = [clients.submit(server.draw, prompt="one of three", seed=seed) for seed in range(3)]
    until(lambda: all(row["jobs"] for row in workers(server).values()), "work for all of them")
    scale(1)
    assert all(answer.result(timeout=60) for answer in answers), "those that leave finish what they have"
    until(lambda: states(server) == {"stub0": "ready"}, "ready")
    assert server.draw(prompt="one is left", seed=1)
