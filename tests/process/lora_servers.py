"""Servers on the stub for the tests of LoRAs: how they are told, and what their pictures tell."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from tests.server import Serve, Server, until
from worker.backends import stub

PINGS = {"ping_seconds": 0.1, "suspect_after_pings": 3, "gone_after_pings": 10, "lora_answer_seconds": 20}
REPLICAS = 3


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
