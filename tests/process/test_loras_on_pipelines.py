"""LoRAs on real Diffusers pipelines of three families, through the gateway, on two replicas: equal bytes, or none."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.adapters import packed, peft
from tests.contract.lora_rooms import BUILDERS, Replica
from tests.server import Serve, Server, until

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def server(serve_for_all: Serve, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Two replicas that hold all three, and for each two LoRAs, named after it."""
    flags = []
    for family, build in BUILDERS.items():
        folder = build(tmp_path_factory.mktemp(family))
        room = Replica(folder, loras)
        for seed, name in enumerate(("ink", "oil")):
            (loras / f"{family}-{name}.safetensors").write_bytes(peft(room.halves(seed)))
        broken = {name: tensor * float("nan") for name, tensor in _tensors(loras / f"{family}-ink.safetensors").items()}
        (loras / f"{family}-nan.safetensors").write_bytes(packed(broken))
        room.close()
        flags += ["--model", f"{family}={folder}"]
    return serve_for_all(*flags, "--device", "cpu", "--num-gpus", "2", "--lora-root", str(loras), png_parameters=False)


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(path)


def put(server: Server, family: str, *names: str, **said: object) -> int:
    """Set these LoRAs of this family; the status."""
    paths = [f"{family}-{name}.safetensors" for name in names]
    body = {"model": family, "lora_nickname": list(names), "lora_path": paths} | said
    return server.http.post("/v1/set_lora", json=body).status_code


def order(server: Server, family: str, what: str, **said: object) -> None:
    answer = server.http.post(f"/v1/{what}_lora_weights", json={"model": family} | said)
    assert (answer.status_code, answer.json()["converged"]) == (200, True), answer.text


def picture(server: Server, family: str, **said: object) -> str:
    """A picture, in base64, as each replica draws it: they have to be of one mind."""
    body = {"model": family, "prompt": "a cat", "seed": 7, "size": "64x64", "steps": 2} | said
    seen: dict[str, str] = {}
    with ThreadPoolExecutor(4) as clients:
        # Side by side: who asks alone is sent to the replica that has those LoRAs at hand.
        while len(seen) < 2:
            for answer in clients.map(lambda _: server.post(**body, return_parameters=True), range(4)):
                assert answer.status_code == 200, answer.text
                seen[answer.json()["replicast"]["replica"]] = answer.json()["data"][0]["b64_json"]
    assert len(set(seen.values())) == 1, "two replicas draw two pictures"
    return next(iter(seen.values()))


@pytest.mark.parametrize("family", BUILDERS)
def test_states_come_and_go_without_a_trace(server: Server, family: str) -> None:
    base = picture(server, family)
    assert put(server, family, "ink") == 200
    ink = picture(server, family)
    assert put(server, family, "oil") == 200
    oil = picture(server, family)
    assert len({base, ink, oil}) == 3
    assert put(server, family, "ink", strength=0) == 200
    assert picture(server, family) == base
    assert put(server, family, "ink") == 200
    order(server, family, "merge", strength=0.5)
    merged = picture(server, family)
    order(server, family, "merge", strength=0.5)
    assert picture(server, family) == merged
    assert len({base, ink, merged}) == 3
    order(server, family, "unmerge")
    assert picture(server, family) == ink
    assert put(server, family) == 200
    assert picture(server, family) == base


@pytest.mark.parametrize("family", BUILDERS)
def test_what_cannot_be_is_refused_and_the_next_picture_is_the_same(server: Server, family: str) -> None:
    assert put(server, family) == 200
    base = picture(server, family)
    other = next(name for name in BUILDERS if name != family)
    for path, code in ((f"{family}-nan", "invalid_adapter"), (f"{other}-ink", "adapter_does_not_fit")):
        body = {"model": family, "lora_nickname": "x", "lora_path": f"{path}.safetensors"}
        answer = server.http.post("/v1/set_lora", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
        alone = server.post(model=family, prompt="a cat", size="64x64", loras=[{"path": f"{path}.safetensors"}])
        assert (alone.status_code, alone.json()["error"]["code"]) == (400, code), alone.text
    assert picture(server, family) == base


@pytest.mark.parametrize("family", BUILDERS)
def test_a_requests_own_loras_are_as_set_and_leave_nothing_behind(server: Server, family: str) -> None:
    assert put(server, family, "oil") == 200
    oil = picture(server, family)
    own = picture(server, family, loras=[{"path": f"{family}-ink.safetensors", "scale": 0.5}])
    none: list[object] = []
    bare = picture(server, family, loras=none)
    order(server, family, "merge")
    merged = picture(server, family)
    assert picture(server, family, loras=[{"path": f"{family}-ink.safetensors", "scale": 0.5}]) == own
    assert picture(server, family, loras=none) == bare
    assert picture(server, family) == merged
    assert put(server, family, "ink", strength=0.5) == 200
    assert picture(server, family) == own
    assert put(server, family) == 200
    assert picture(server, family) == bare
    assert len({oil, own, bare}) == 3


def test_a_replica_that_was_killed_comes_back_with_the_state_of_each_model(server: Server) -> None:
    before = {}
    for family in BUILDERS:
        assert put(server, family, "ink", strength=0.5) == 200
        order(server, family, "merge")
        before[family] = picture(server, family)
    os.kill(next(iter(server.workers().values())), signal.SIGKILL)
    until(lambda: len(server.workers()) == 2 and server.whole, "the replica back", 90)
    for family in BUILDERS:
        assert picture(server, family) == before[family]
