"""Changes of LoRAs that nobody can follow are taken back, and only those; and files that are lost."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.process.lora_servers import PINGS, drawn, expect_everywhere, ordered, put, stubs, told
from tests.server import Serve, Server, until


@pytest.mark.parametrize("restart_limit", [2, 100], ids=["given up on", "still tried"])
def test_a_change_that_nobody_can_follow_is_taken_back(serve: Serve, lora_folder: Path, restart_limit: int) -> None:
    faults = "step_seconds=0.02&fail_adopt=broken"
    server = serve(
        *("--device", "stub:2", "--model", f"stub?{faults}", "--lora-root", str(lora_folder)),
        **(PINGS | {"lora_answer_seconds": 0.5, "lora_revert_seconds": 1.5, "restart_limit": restart_limit}),
    )
    assert put(server, "ink", 0.5).status_code == 200
    answer = put(server, "broken", 0.25)
    assert (answer.status_code, answer.json()["converged"]) == (202, False)
    until(lambda: told(server)["converged"], "what was before", 40)
    found = told(server)
    assert (found["wanted"]["epoch"], found["last_command"]["status"]) == (3, "reverted")
    made, _ = drawn(server)
    assert [scale for _, scale, _ in made["loras"]["adapters"]] == [0.5]


def quarantine(server: Server, name: str) -> None:
    """Have this worker die until it is given up on; with a limit of two starts that takes two deaths at most."""

    def given_up() -> bool:
        if pid := server.workers().get(name):
            os.kill(pid, signal.SIGKILL)
        state: str = server.readyz()["workers"][name]["state"]
        return state == "quarantined"

    until(given_up, f"{name} in quarantine")


def test_a_change_is_not_taken_back_for_a_busy_replica_and_one_that_was_lost_before(
    serve: Serve, lora_folder: Path, tmp_path: Path, clients: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    server = serve(
        *("--device", "stub:2", "--model", f"stub?gate={gate}", "--lora-root", str(lora_folder)),
        **(PINGS | {"lora_answer_seconds": 0.2, "lora_revert_seconds": 0.5, "restart_limit": 2}),
    )
    quarantine(server, "stub1")
    busy = clients.submit(server.draw, prompt="x")
    until(lambda: sum(server.jobs().values()) == 1, "the other one busy")
    assert put(server, "ink", 0.5).status_code == 202
    time.sleep(1.5)
    gate.touch()
    assert busy.result(30)
    until(lambda: told(server)["converged"], "the new state")
    assert (told(server)["wanted"]["epoch"], told(server)["last_command"]["status"]) == (1, "applied")


def test_a_change_is_taken_back_for_who_finds_only_late_that_it_cannot_be_had(
    serve: Serve, lora_folder: Path, tmp_path: Path, clients: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    server = serve(
        *("--device", "stub:1", "--model", f"stub?gate={gate}", "--lora-root", str(lora_folder)),
        **(PINGS | {"lora_answer_seconds": 0.2, "lora_revert_seconds": 0.5}),
    )
    assert put(server, "ink", 0.5).status_code in (200, 202)
    until(lambda: told(server)["converged"], "the first state")
    kept = {copy.name for copy in (server.data_dir / "loras" / "shelf").glob("*.safetensors")}
    busy = clients.submit(server.draw, prompt="x")
    until(lambda: sum(server.jobs().values()) == 1, "the replica busy")
    assert put(server, "oil", 0.5).status_code == 202
    for copy in (server.data_dir / "loras" / "shelf").glob("*.safetensors"):
        if copy.name not in kept:
            copy.unlink()
    time.sleep(1.0)
    gate.touch()
    assert busy.result(30)
    until(lambda: told(server)["converged"], "what was before")
    assert (told(server)["wanted"]["epoch"], told(server)["last_command"]["status"]) == (3, "reverted")


def test_a_bare_model_is_a_way_out_that_stays_open(serve: Serve, lora_folder: Path) -> None:
    server = serve(
        *("--device", "stub:2", "--model", "stub", "--lora-root", str(lora_folder)),
        **(PINGS | {"lora_answer_seconds": 0.2, "lora_revert_seconds": 0.5, "restart_limit": 2}),
    )
    assert put(server, "ink", 0.5).status_code == 200
    for lost in (server.data_dir / "loras" / "shelf").glob("*.safetensors"):
        lost.unlink()
    for name in ("stub0", "stub1"):
        quarantine(server, name)
    assert ordered(server, lora_nickname=[]).status_code == 202
    time.sleep(1.5)
    assert told(server)["wanted"]["epoch"] == 2
    for name in ("stub0", "stub1"):
        assert server.http.post(f"/v1/admin/workers/{name}/restart").status_code in (200, 202)
    until(lambda: told(server)["converged"], "a bare model")
    made, _ = drawn(server)
    assert (made["epoch"], made["loras"]["adapters"]) == (2, [])


def test_a_change_that_nobody_can_follow_is_taken_back_by_the_next_gateway_too(
    serve: Serve, lora_folder: Path, tmp_path: Path
) -> None:
    flags = ("--device", "stub:2", "--model", "stub?fail_adopt=broken", "--lora-root", str(lora_folder))
    settings = PINGS | {"lora_revert_seconds": 1.5, "restart_limit": 100}
    first = serve(*flags, data_dir=tmp_path / "kept", **settings)
    assert put(first, "ink", 0.5).status_code == 200
    assert put(first, "broken", 0.25, wait="none").status_code == 202
    first.signal(signal.SIGKILL)
    first.wait()
    second = serve(*flags, data_dir=tmp_path / "kept", ready=False, **settings)
    until(lambda: told(second)["converged"], "what was before", 40)
    found = told(second)
    assert (found["wanted"]["epoch"], found["last_command"]["status"]) == (3, "reverted")
    made, _ = drawn(second)
    assert [scale for _, scale, _ in made["loras"]["adapters"]] == [0.5]


def lose_its_file(server: Server) -> None:
    """The one file on the shelf is gone, and every replica has to begin without it."""
    [copy] = (server.data_dir / "loras" / "shelf").glob("*.safetensors")
    copy.unlink()
    for pid in server.workers().values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(row["problem"] for row in told(server)["replicas"]), "what keeps them", 30)


def test_a_file_that_is_lost_from_the_shelf_keeps_its_model_from_serving_until_it_is_not_wanted(
    serve: Serve, lora_folder: Path
) -> None:
    server = stubs(serve, lora_folder)
    assert put(server, "ink", 0.5).status_code == 200
    lose_its_file(server)
    assert {row["problem"]["code"] for row in told(server)["replicas"]} == {"lora_not_found"}
    assert server.post(prompt="x").status_code == 503
    pids = set(server.workers().values())
    assert ordered(server, lora_nickname=[]).status_code == 200
    expect_everywhere(server, [], 2)
    # Nobody had to be started anew for it.
    assert set(server.workers().values()) == pids


def test_a_file_that_is_lost_from_the_shelf_is_there_again_when_it_is_named_again(
    serve: Serve, lora_folder: Path
) -> None:
    server = stubs(serve, lora_folder)
    assert put(server, "ink", 0.5).status_code == 200
    lose_its_file(server)
    answer = put(server, "ink", 0.5)
    assert (answer.status_code, answer.json()["result"]) == (200, "unchanged")
    expect_everywhere(server, [0.5], 1)
