"""LoRAs from a real S3 server: signed requests, parts, versions, and what a kill in the middle leaves behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.loras.catalogue import Catalogue
from gateway.loras.finder import Finder
from gateway.loras.shelf import Shelf
from shared.errors import SourceUnavailable, UnknownAdapter
from shared.store.s3 import PART_BYTES, S3
from tests.house.tree import ROOT
from tests.loras import lora, sha256
from tests.seaweed import BUCKET, Seaweed, seaweed

pytestmark = pytest.mark.process
BIG = lora("big", filler=3 * PART_BYTES)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        put(server, "styles/big.safetensors", BIG)
        yield server


def put(server: Seaweed, key: str, content: bytes) -> None:
    import obstore

    obstore.put(S3(server.address)._bucket(BUCKET), key, content)


def made(folder: Path, address: str, **changed: Any) -> tuple[Finder, Shelf]:
    shelf = Shelf(folder / "shelf", max_file_bytes=1 << 30, max_bytes=1 << 32)
    catalogue = Catalogue(folder / "catalogue", max_file_bytes=1 << 30, max_bytes=1 << 30)
    options = {"s3_prefixes": (f"{BUCKET}/styles",), "s3_endpoint": address, **changed}
    return Finder(shelf, catalogue, **options), shelf


async def test_a_lora_comes_whole_and_once(server: Seaweed, tmp_path: Path) -> None:
    finder, shelf = made(tmp_path, server.address)
    name = f"s3://{BUCKET}/styles/big.safetensors"
    found = await asyncio.gather(*(finder.find(name, "lora_path") for _ in range(3)))
    assert {each.sha256 for each in found} == {sha256(BIG)}
    assert shelf.path(sha256(BIG)).read_bytes() == BIG


async def test_another_version_is_another_lora(server: Seaweed, tmp_path: Path) -> None:
    finder, _ = made(tmp_path, server.address)
    for word in ("one", "two"):
        put(server, "styles/changing.safetensors", lora(word))
        found = await finder.find(f"s3://{BUCKET}/styles/changing.safetensors", "lora_path")
        assert found.sha256 == sha256(lora(word))


async def test_a_version_that_comes_meanwhile_is_noticed(server: Seaweed) -> None:
    put(server, "styles/meanwhile.safetensors", BIG)
    store = S3(server.address)
    pieces = store.read(store.look(BUCKET, "styles/meanwhile.safetensors"))
    assert next(pieces) == BIG[:PART_BYTES]
    put(server, "styles/meanwhile.safetensors", lora("other", filler=3 * PART_BYTES))
    with pytest.raises(SourceUnavailable, match="changed while it was fetched"):
        list(pieces)


async def test_a_wrong_secret_and_a_missing_key_are_alike(
    server: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder, shelf = made(tmp_path, server.address)
    said = []
    for key, secret in (("none", None), ("big", "wrong")):
        if secret:
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with pytest.raises(UnknownAdapter) as caught:
            await finder.find(f"s3://{BUCKET}/styles/{key}.safetensors", "lora_path")
        said.append(caught.value.message.replace("none", "big"))
    assert said[0] == said[1]
    assert list(shelf.folder.iterdir()) == []


FETCHING = """
import asyncio, pathlib, sys
from tests.process.test_lora_s3 import made

async def main():
    finder, _ = made(pathlib.Path(sys.argv[1]), sys.argv[2])
    print("begun", flush=True)
    await finder.find(sys.argv[3], "lora_path")
    print("done", flush=True)

asyncio.run(main())
"""


async def test_a_kill_in_the_middle_leaves_nothing_that_could_be_loaded(server: Seaweed, tmp_path: Path) -> None:
    name, rng, halfway = f"s3://{BUCKET}/styles/big.safetensors", random.Random(7), 0
    for round_ in range(10):
        folder = tmp_path / str(round_)
        program = [sys.executable, "-c", FETCHING, str(folder), server.address, name]
        child = subprocess.Popen(program, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, **server.environment})
        assert child.stdout is not None
        child.stdout.readline()
        await asyncio.sleep(rng.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        done = b"done" in child.communicate()[0]
        left = {path.name for path in (folder / "shelf").iterdir()}
        halfway += any(each.endswith(".part") for each in left)
        assert {each for each in left if not each.endswith(".part")} <= {f"{sha256(BIG)}.safetensors"}
        assert not done or f"{sha256(BIG)}.safetensors" in left
        finder, shelf = made(folder, server.address)
        assert not [path for path in shelf.folder.iterdir() if path.suffix == ".part"]
        assert (await finder.find(name, "lora_path")).sha256 == sha256(BIG)
    assert halfway > 0
