"""LoRAs over real replicas: every picture tells which weights made it, whatever dies, hangs or refuses in between."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.process.lora_servers import REPLICAS, drawn, expect_everywhere, ordered, put, stubs, told
from tests.server import Serve, until


def test_every_replica_draws_with_what_was_set_merged_and_unmerged(serve: Serve, lora_folder: Path) -> None:
    server = stubs(serve, lora_folder)
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
    serve: Serve, lora_folder: Path, clients: ThreadPoolExecutor
) -> None:
    server = stubs(serve, lora_folder)
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
    serve: Serve, lora_folder: Path, name: str, statuses: set[int], clients: ThreadPoolExecutor
) -> None:
    server = stubs(serve, lora_folder)
    assert put(server, "ink", 0.5).status_code == 200
    enough = threading.Event()

    def draw(client: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        found = []
        while not enough.is_set():
            found.append(drawn(server, seed=client))
        return found

    drawing = [clients.submit(draw, client) for client in range(4)]
    (lora_folder / "struck").touch()
    answer = put(server, name, 0.25)
    assert answer.status_code in statuses, answer.text
    applied = answer.status_code < 300
    assert not (lora_folder / "struck").exists(), "nobody met the fault"
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
    serve: Serve, lora_folder: Path
) -> None:
    server = stubs(serve, lora_folder, lora_prepare_seconds=1)
    assert put(server, "ink", 0.5).status_code == 200
    stopped = next(iter(server.workers().values()))
    os.kill(stopped, signal.SIGSTOP)
    answer = put(server, "oil", 0.25)
    # It is found by its silence, and replaced; the new one has the new state before it serves.
    assert answer.status_code in (200, 202)
    until(lambda: told(server)["converged"] and len(told(server)["replicas"]) == REPLICAS, "all replicas back", 30)
    expect_everywhere(server, [0.25], 2)
    assert stopped not in server.workers().values()


def test_a_killed_gateway_and_a_new_replica_begin_with_what_was_decided(
    serve: Serve, lora_folder: Path, tmp_path: Path
) -> None:
    first = stubs(serve, lora_folder, data_dir=tmp_path / "kept")
    put(first, "ink", 0.5)
    assert ordered(first, "merge_lora_weights", strength=0.5).status_code == 200
    first.signal(signal.SIGKILL)
    first.wait()
    (lora_folder / "ink.safetensors").unlink()
    second = stubs(serve, lora_folder, data_dir=tmp_path / "kept")
    expect_everywhere(second, [0.25], 2)
    killed = next(iter(second.workers().values()))
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in second.workers().values() and len(second.workers()) == REPLICAS, "another process")
    until(lambda: second.whole and told(second)["converged"], "the replica back")
    expect_everywhere(second, [0.25], 2)


def test_the_list_is_there_at_once_while_every_replica_is_busy(serve: Serve, lora_folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = stubs(serve, lora_folder, options=f"gate={gate}")
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
    serve: Serve, lora_folder: Path, clients: ThreadPoolExecutor
) -> None:
    server = stubs(serve, lora_folder, options="steps=1")
    assert put(server, "leaky", 0.125).status_code == 200

    def mine(name: str, scale: float) -> Callable[[int], bool]:
        def draw(seed: int) -> bool:
            made, said = drawn(server, seed=seed, loras=[{"path": f"{name}.safetensors", "scale": scale}])
            return made["loras"]["overlay"] and [s for *_, s, _ in made["loras"]["adapters"]] == [scale] and bool(said)

        return draw

    halves = [clients.map(mine("ink", 0.5), range(100)), clients.map(mine("oil", 0.25), range(100))]
    assert all(right for half in halves for right in half)
    expect_everywhere(server, [0.125], 1)


def test_a_request_that_leaves_its_loras_behind_spoils_no_other(serve: Serve, lora_folder: Path) -> None:
    server = stubs(serve, lora_folder)
    assert put(server, "ink", 0.5).status_code == 200
    (lora_folder / "struck").touch()
    answer = server.post(prompt="x", loras=[{"path": "leaky.safetensors"}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "lora_failed")
    expect_everywhere(server, [0.5], 1)
