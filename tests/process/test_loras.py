"""LoRAs over real replicas: every picture tells which weights made it, whatever dies, hangs or refuses in between."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.adapters import layers
from tests.server import Serve, Server, until
from worker.backends import stub

PINGS = {"ping_seconds": 0.1, "suspect_after_pings": 3, "gone_after_pings": 10, "lora_answer_seconds": 20}
REPLICAS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of LoRAs whose names are what becomes of them on a stub with FAULTS."""
    loras = tmp_path / "loras"
    loras.mkdir()
    for seed, name in enumerate(("ink", "oil", "refused", "broken", "leaky", "deadly", "fatal")):
        (loras / f"{name}.safetensors").write_bytes(layers(seed))
    return loras


def stubs(serve: Serve, folder: Path, options: str = "step_seconds=0.02", **settings: object) -> Server:
    """Three replicas; the first of them that meets a LoRA with a fault takes it, while the file `struck` lies there."""
    struck = folder / "struck"
    faults = "fail_prepare=refused&fail_adopt=broken&fail_overlay=leaky&exit_prepare=deadly&exit_adopt=fatal"
    model = f"stub?{options}&{faults}&struck={struck}"
    flags = ("--device", f"stub:{REPLICAS}", "--model", model, "--lora-root", str(folder))
    return serve(*flags, **(PINGS | settings))


def ordered(server: Server, path: str = "set_lora", **said: object) -> httpx2.Response:
    return server.http.post(f"/v1/{path}", json=said)


def put(server: Server, name: str, strength: float = 1.0, **more: object) -> httpx2.Response:
    return ordered(server, lora_nickname=name, lora_path=f"{name}.safetensors", strength=strength, **more)


def told(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/v1/list_loras").json()
    return found


def drawn(server: Server, **said: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a picture was made from by its own pixels, and what the answer says."""
    answer = server.post(prompt="x", return_parameters=True, **said)
    assert answer.status_code == 200, answer.text
    [row] = answer.json()["data"]
    return stub.read_back(base64.b64decode(row["b64_json"])), answer.json()["replicast"]


def expect_everywhere(server: Server, scales: list[float], epoch: int) -> None:
    """Whoever draws, draws with these; all replicas have to do their share."""
    seen: set[str] = set()

    def everybody(clients: ThreadPoolExecutor) -> bool:
        for made, said in clients.map(lambda seed: drawn(server, seed=seed), range(2 * REPLICAS)):
            assert [scale for _, scale, _ in made["loras"]["adapters"]] == scales
            assert made["epoch"] == said["lora_epoch"] == epoch
            seen.add(said["replica"])
        return seen == set(server.workers())

    with ThreadPoolExecutor(2 * REPLICAS) as clients:
        until(lambda: everybody(clients), "every replica's share")


def test_every_replica_draws_with_what_was_set_merged_and_unmerged(serve: Serve, folder: Path) -> None:
    server = stubs(serve, folder)
    assert put(server, "ink", 0.5).json()["epoch"] == 1
    expect_everywhere(server, [0.5], 1)
    assert ordered(server, "merge_lora_weights", strength=0.5).status_code == 200
    expect_everywhere(server, [0.25], 2)
    assert drawn(server)[0]["loras"]["mode"] == "merged"
    assert ordered(server, "unmerge_lora_weights").status_code == 200
    expect_everywhere(server, [0.5], 3)
    assert ordered(server, lora_nickname=[]).status_code == 200
    expect_everywhere(server, [], 4)


def test_pictures_are_wholly_of_the_old_or_the_new_and_after_an_answer_of_the_new(
    serve: Serve, folder: Path, clients: ThreadPoolExecutor
) -> None:
    server = stubs(serve, folder)
    enough = threading.Event()
    answered = [0]
    pictures: list[tuple[int, dict[str, Any], dict[str, Any]]] = []

    def draw(client: int) -> None:
        while not enough.is_set():
            least = answered[0]
            pictures.append((least, *drawn(server, seed=client)))

    drawing = [clients.submit(draw, client) for client in range(6)]
    states: dict[int, list[float]] = {0: []}
    for number in range(50):
        strength = round(0.1 + number / 100, 2)
        answer = put(server, ("ink", "oil")[number % 2], strength)
        assert (answer.status_code, answer.json()["converged"]) == (200, True)
        states[answer.json()["epoch"]] = [strength]
        answered[0] = answer.json()["epoch"]
    enough.set()
    for each in drawing:
        each.result(60)
    assert len(pictures) > 50
    assert len({made["epoch"] for _, made, _ in pictures}) > 20
    for least, made, said in pictures:
        assert made["epoch"] == said["lora_epoch"] >= least
        assert [scale for _, scale, _ in made["loras"]["adapters"]] == states[made["epoch"]]


@pytest.mark.parametrize(
    ("name", "statuses"),
    [("refused", {409, 400}), ("deadly", {200, 202}), ("broken", {200, 202}), ("fatal", {200, 202})],
    ids=["refuses", "dies of preparing", "cannot follow", "dies of following"],
)
def test_whatever_one_of_three_does_no_two_ever_serve_different_states(
    serve: Serve, folder: Path, name: str, statuses: set[int], clients: ThreadPoolExecutor
) -> None:
    server = stubs(serve, folder)
    assert put(server, "ink", 0.5).status_code == 200
    enough = threading.Event()

    def draw(client: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        found = []
        while not enough.is_set():
            found.append(drawn(server, seed=client))
        return found

    drawing = [clients.submit(draw, client) for client in range(4)]
    (folder / "struck").touch()
    answer = put(server, name, 0.25)
    assert answer.status_code in statuses, answer.text
    applied = answer.status_code < 300
    assert not (folder / "struck").exists(), "nobody met the fault"
    until(lambda: told(server)["converged"], "all replicas in one state", 30)
    enough.set()
    found = [picture for each in drawing for picture in each.result(60)]
    scales = {1: [0.5], 2: [0.25]}
    assert all([s for _, s, _ in made["loras"]["adapters"]] == scales[made["epoch"]] for made, _ in found)
    after = told(server)
    assert after["wanted"]["epoch"] == (2 if applied else 1)
    assert after["last_command"]["status"] in (("applied", "pending") if applied else ("aborted",))
    expect_everywhere(server, scales[after["wanted"]["epoch"]], after["wanted"]["epoch"])


def test_a_replica_that_stands_still_neither_holds_up_a_change_nor_serves_the_old_one(
    serve: Serve, folder: Path
) -> None:
    server = stubs(serve, folder, lora_prepare_seconds=1)
    assert put(server, "ink", 0.5).status_code == 200
    stopped = next(iter(server.workers().values()))
    os.kill(stopped, signal.SIGSTOP)
    answer = put(server, "oil", 0.25)
    # It is found by its silence, and replaced; the new one has the new state before it serves.
    assert answer.status_code in (200, 202)
    until(lambda: told(server)["converged"] and len(told(server)["replicas"]) == REPLICAS, "all replicas back", 30)
    expect_everywhere(server, [0.25], 2)
    assert stopped not in server.workers().values()


def test_a_change_that_nobody_can_follow_is_taken_back(serve: Serve, folder: Path) -> None:
    faults = "step_seconds=0.02&fail_adopt=broken"
    server = serve(
        *("--device", "stub:2", "--model", f"stub?{faults}", "--lora-root", str(folder)),
        **(PINGS | {"lora_answer_seconds": 0.5, "lora_revert_seconds": 1.5, "restart_limit": 100}),
    )
    assert put(server, "ink", 0.5).status_code == 200
    answer = put(server, "broken", 0.25)
    assert (answer.status_code, answer.json()["converged"]) == (202, False)
    until(lambda: told(server)["converged"], "what was before", 40)
    found = told(server)
    assert (found["wanted"]["epoch"], found["last_command"]["status"]) == (3, "reverted")
    made, _ = drawn(server)
    assert [scale for _, scale, _ in made["loras"]["adapters"]] == [0.5]


def test_a_change_that_nobody_can_follow_is_taken_back_by_the_next_gateway_too(
    serve: Serve, folder: Path, tmp_path: Path
) -> None:
    flags = ("--device", "stub:2", "--model", "stub?fail_adopt=broken", "--lora-root", str(folder))
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


def test_a_killed_gateway_and_a_new_replica_begin_with_what_was_decided(
    serve: Serve, folder: Path, tmp_path: Path
) -> None:
    first = stubs(serve, folder, data_dir=tmp_path / "kept")
    put(first, "ink", 0.5)
    assert ordered(first, "merge_lora_weights", strength=0.5).status_code == 200
    first.signal(signal.SIGKILL)
    first.wait()
    (folder / "ink.safetensors").unlink()
    second = stubs(serve, folder, data_dir=tmp_path / "kept")
    expect_everywhere(second, [0.25], 2)
    killed = next(iter(second.workers().values()))
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in second.workers().values() and len(second.workers()) == REPLICAS, "another process")
    until(lambda: second.whole and told(second)["converged"], "the replica back")
    expect_everywhere(second, [0.25], 2)


def test_the_list_is_there_at_once_while_every_replica_is_busy(serve: Serve, folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = stubs(serve, folder, options=f"gate={gate}")
    with ThreadPoolExecutor(REPLICAS) as clients:
        asked = [clients.submit(server.draw, prompt="x", seed=seed) for seed in range(REPLICAS)]
        until(lambda: sum(server.jobs().values()) == REPLICAS, "all busy")
        # A vote needs no device; to follow, it has to be free.
        answer = put(server, "ink", 0.5, wait="none")
        assert (answer.status_code, answer.json()["converged"]) == (202, False)
        began = time.monotonic()
        rows = told(server)["replicas"]
        assert time.monotonic() - began < 1.0
        assert [(row["behind"], row["epoch"]) for row in rows] == [(True, 0)] * REPLICAS
        gate.touch()
        assert all(each.result(30) for each in asked)
    until(lambda: told(server)["converged"], "the new state")


def test_clients_with_loras_of_their_own_never_get_each_others(
    serve: Serve, folder: Path, clients: ThreadPoolExecutor
) -> None:
    server = stubs(serve, folder, options="steps=1")
    assert put(server, "leaky", 0.125).status_code == 200

    def mine(name: str, scale: float) -> Callable[[int], bool]:
        def draw(seed: int) -> bool:
            made, said = drawn(server, seed=seed, loras=[{"path": f"{name}.safetensors", "scale": scale}])
            return made["loras"]["overlay"] and [s for *_, s, _ in made["loras"]["adapters"]] == [scale] and bool(said)

        return draw

    halves = [clients.map(mine("ink", 0.5), range(100)), clients.map(mine("oil", 0.25), range(100))]
    assert all(right for half in halves for right in half)
    expect_everywhere(server, [0.125], 1)


def test_a_request_that_leaves_its_loras_behind_spoils_no_other(serve: Serve, folder: Path) -> None:
    server = stubs(serve, folder)
    assert put(server, "ink", 0.5).status_code == 200
    (folder / "struck").touch()
    answer = server.post(prompt="x", loras=[{"path": "leaky.safetensors"}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "lora_failed")
    expect_everywhere(server, [0.5], 1)


def test_a_file_that_is_lost_from_the_shelf_keeps_its_model_from_serving_until_it_is_not_wanted(
    serve: Serve, folder: Path
) -> None:
    server = stubs(serve, folder)
    assert put(server, "ink", 0.5).status_code == 200
    [copy] = (server.data_dir / "loras" / "shelf").glob("*.safetensors")
    copy.unlink()
    for pid in server.workers().values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(row["problem"] for row in told(server)["replicas"]), "what keeps them", 30)
    assert {row["problem"]["code"] for row in told(server)["replicas"]} == {"lora_not_found"}
    assert server.post(prompt="x").status_code == 503
    pids = set(server.workers().values())
    assert ordered(server, lora_nickname=[]).status_code == 200
    expect_everywhere(server, [], 2)
    # Nobody had to be started anew for it.
    assert set(server.workers().values()) == pids
