"""The catalogue of LoRAs: each a folder that is there whole or not at all, found by id, name and path."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from gateway.loras.catalogue import About, Catalogue
from shared.errors import ConfigError, InvalidAdapter, StorageFull, UnknownAdapter
from tests.house.tree import ROOT
from tests.loras import lora, sha256, write

INK = lora("ink")
ABOUT = About(name="Ink & Wash!", family="sdxl", compatible_models=("a",), trigger_words=("ink",), default_strength=0.8)


def made(folder: Path, **changed: int) -> Catalogue:
    return Catalogue(folder / "loras", **{"max_file_bytes": 1 << 26, "max_bytes": 1 << 40, **changed})


class Source:
    def __init__(self, folder: Path, content: bytes = INK) -> None:
        self.path = write(folder / "source.safetensors", content)

    def __call__(self) -> BinaryIO:
        return self.path.open("rb")


async def test_what_is_added_is_there_after_a_restart(tmp_path: Path) -> None:
    catalogue = made(tmp_path)
    record = await catalogue.add(Source(tmp_path), ABOUT, 1_700_000_000.9)
    assert (record.id, record.name, record.sha256) == ("imported/ink-wash", "Ink & Wash!", sha256(INK))
    assert (record.size_bytes, record.rank, record.targets) == (len(INK), 4, ("to_q",))
    assert record.imported_at == 1_700_000_000
    assert catalogue.path(record).read_bytes() == INK
    assert catalogue.path(record) == tmp_path / "loras/imported/ink-wash/adapter.safetensors"
    assert made(tmp_path).records == [record]
    kept = json.loads((tmp_path / "loras/imported/ink-wash/metadata.json").read_text())
    assert kept["trigger_words"] == ["ink"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "loras/imported").rglob("*")}
    assert modes == {0o600, 0o700}


async def test_names_make_ids_and_no_two_are_alike(tmp_path: Path) -> None:
    catalogue, source = made(tmp_path), Source(tmp_path)
    names = ["Ink", "ink", "INK!", "../../etc", "ÖÄ", "x" * 200, "a/b"]
    ids = [(await catalogue.add(source, ABOUT.model_copy(update={"name": name}), 0)).id for name in names]
    assert ids == [
        "imported/ink",
        "imported/ink-2",
        "imported/ink-3",
        "imported/etc",
        "imported/lora",
        f"imported/{'x' * 80}",
        "imported/a-b",
    ]
    assert [r.id for r in made(tmp_path).records] == sorted(ids)


async def test_one_is_found_by_id_by_a_name_of_its_own_and_by_its_path(tmp_path: Path) -> None:
    catalogue, source = made(tmp_path), Source(tmp_path)
    first = await catalogue.add(source, ABOUT, 0)
    assert catalogue.find("imported/ink-wash") == catalogue.find("Ink & Wash!") == first
    assert catalogue.find(str(catalogue.path(first))) == first
    second = await catalogue.add(source, ABOUT, 0)
    assert catalogue.find("Ink & Wash!") is None
    assert catalogue.find(second.id) == second
    assert catalogue.find("ink-wash") is None


async def test_what_is_deleted_is_gone(tmp_path: Path) -> None:
    catalogue = made(tmp_path)
    record = await catalogue.add(Source(tmp_path), ABOUT, 0)
    await catalogue.delete(record)
    await catalogue.delete(record)
    assert (catalogue.records, catalogue.get(record.id)) == ([], None)
    assert list((tmp_path / "loras/imported").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "limits", "error", "said"),
    [
        (INK[:-1], {}, InvalidAdapter, "cut off"),
        (INK, {"max_file_bytes": 100}, InvalidAdapter, "lora_max_bytes"),
        (INK, {"max_bytes": 100}, StorageFull, "lora_shelf_bytes"),
    ],
)
async def test_what_cannot_be_taken_leaves_no_trace(
    tmp_path: Path, content: bytes, limits: dict[str, Any], error: type[Exception], said: str
) -> None:
    catalogue = made(tmp_path, **limits)
    with pytest.raises(error, match=said):
        await catalogue.add(Source(tmp_path, content), ABOUT, 0)
    assert catalogue.records == list((tmp_path / "loras/imported").iterdir()) == []


async def test_what_is_not_there_is_unknown(tmp_path: Path) -> None:
    def missing() -> BinaryIO:
        raise UnknownAdapter("there is none")

    with pytest.raises(UnknownAdapter):
        await made(tmp_path).add(missing, ABOUT, 0)


async def test_a_file_is_examined_without_a_trace(tmp_path: Path) -> None:
    catalogue = made(tmp_path)
    seen, digest = await catalogue.examine(Source(tmp_path))
    assert (seen.rank, digest) == (4, sha256(INK))
    assert list((tmp_path / "loras/imported").iterdir()) == []


async def test_a_folder_that_cannot_be_read_is_left_out_and_left_alone(tmp_path: Path) -> None:
    record = await made(tmp_path).add(Source(tmp_path), ABOUT, 0)
    imported = tmp_path / "loras/imported"
    for name, metadata in (("no-metadata", None), ("broken", "{"), ("wrong", '{"id": 3}'), ("Not Ours", "{}")):
        (imported / name).mkdir()
        if metadata is not None:
            (imported / name / "metadata.json").write_text(metadata)
    (imported / f".{'a' * 32}.part").mkdir()
    assert made(tmp_path).records == [record]
    assert {path.name for path in imported.iterdir()} == {"ink-wash", "no-metadata", "broken", "wrong", "Not Ours"}


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "loras").write_text("")
    with pytest.raises(ConfigError, match="cannot be used for LoRAs"):
        made(tmp_path)


ADDING = """
import asyncio, pathlib, sys
from tests.loras import lora
from tests.unit.test_catalogue import ABOUT, Source, made

async def main():
    folder = pathlib.Path(sys.argv[1])
    catalogue = made(folder)
    for number in range(1000):
        print((await catalogue.add(Source(folder, lora(str(number), filler=1 << 22)), ABOUT, 0)).id, flush=True)

asyncio.run(main())
"""


async def test_a_kill_at_any_moment_leaves_only_whole_ones(tmp_path: Path) -> None:
    for round_ in range(4):
        child = subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        told = {child.stdout.readline().decode().strip()}
        await asyncio.sleep(0.013 * round_)
        child.send_signal(signal.SIGKILL)
        told |= set(child.communicate()[0].decode().split())
        catalogue = made(tmp_path)
        assert told <= {record.id for record in catalogue.records}
        for record in catalogue.records:
            assert sha256(catalogue.path(record).read_bytes()) == record.sha256
        assert len(os.listdir(tmp_path / "loras/imported")) == len(catalogue.records)
