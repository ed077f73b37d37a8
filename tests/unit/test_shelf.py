"""The shelf of LoRAs: copies by content that nobody changes, whole or not there, within their bounds."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from gateway.loras.incoming import Incoming
from gateway.loras.shelf import Shelf
from shared.errors import ConfigError, InvalidAdapter, StorageFull, UnknownAdapter
from tests.house.tree import ROOT
from tests.loras import lora, sha256, write

INK, OIL = lora("ink"), lora("oil")
SIZE = len(INK)


@dataclass
class Clock:
    """Unix seconds that pass when a test says so."""

    now: float

    def __call__(self) -> float:
        return self.now


def made(folder: Path, **changed: Any) -> Shelf:
    options = {"max_file_bytes": 1 << 20, "max_bytes": 1 << 20, **changed}
    return Shelf(folder / "shelf", **options)


def lying(shelf: Shelf) -> set[str]:
    return {path.name for path in shelf.folder.iterdir()}


class Counted:
    """Opens a file, and counts how many of its bytes are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.opened = path, 0

    def __call__(self) -> BinaryIO:
        self.opened += 1
        return self.path.open("rb")


async def test_a_file_is_copied_under_its_hash_for_our_eyes_alone(tmp_path: Path) -> None:
    shelf = made(tmp_path)
    taken = await shelf.take(write(tmp_path / "ink.safetensors", INK))
    assert taken == sha256(INK)
    assert shelf.path(taken).read_bytes() == INK
    assert lying(shelf) == {f"{taken}.safetensors"}
    assert stat.S_IMODE(shelf.path(taken).stat().st_mode) == 0o600
    assert stat.S_IMODE(shelf.folder.stat().st_mode) == 0o700


async def test_the_copy_stays_when_the_file_changes_and_a_new_one_is_another(tmp_path: Path) -> None:
    shelf = made(tmp_path)
    path = write(tmp_path / "x.safetensors", INK)
    first = await shelf.take(path)
    write(path, OIL)
    second = await shelf.take(path)
    path.unlink()
    assert [shelf.path(each).read_bytes() for each in (first, second)] == [INK, OIL]


async def test_equal_files_lie_there_once(tmp_path: Path) -> None:
    shelf = made(tmp_path)
    taken = {await shelf.take(write(tmp_path / f"{name}.safetensors", INK)) for name in "abc"}
    assert len(taken) == len(lying(shelf)) == 1
    assert shelf.held_bytes == SIZE


async def test_a_file_that_is_known_is_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", INK)
    clock = Clock(path.stat().st_ctime + 5)
    shelf = made(tmp_path, clock=clock)
    opened = Counted(path)
    first = await shelf.take_opened(opened)
    before = opened.opened
    assert await shelf.take_opened(opened) == first
    # Opened once, to see which file it is.
    assert opened.opened == before + 1


async def test_a_file_that_has_just_changed_is_not_believed_to_be_the_same(tmp_path: Path) -> None:
    """Its times may be too coarse to tell: the same length, the same moment, other bytes."""
    path = write(tmp_path / "x.safetensors", INK)
    status = path.stat()
    shelf = made(tmp_path, clock=Clock(status.st_mtime))
    await shelf.take(path)
    with path.open("r+b") as file:
        file.write(OIL)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert await shelf.take(path) == sha256(OIL)


async def test_the_same_file_asked_for_at_once_is_copied_once(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", INK)
    shelf = made(tmp_path, clock=Clock(path.stat().st_ctime + 5), max_bytes=SIZE)
    opened = Counted(path)
    assert set(await asyncio.gather(*(shelf.take_opened(opened) for _ in range(20)))) == {sha256(INK)}
    # Each looks twice at which one it is; the first also looks at the header and copies.
    assert opened.opened <= 42


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (INK[:-1], "cut off"),
        (INK + b"x", "belong to no tensor"),
        (b"PK\x03\x04" * 100, "claims"),
        (lora(filler=1 << 20), "at most 1048576 are taken"),
    ],
)
async def test_what_is_no_lora_file_leaves_no_trace(tmp_path: Path, content: bytes, said: str) -> None:
    shelf = made(tmp_path)
    with pytest.raises(InvalidAdapter, match=said):
        await shelf.take(write(tmp_path / "x.safetensors", content))
    assert lying(shelf) == set()
    assert shelf.held_bytes == 0


async def test_what_is_not_there_is_unknown(tmp_path: Path) -> None:
    shelf = made(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", tmp_path / "a\0b"):
        with pytest.raises(UnknownAdapter):
            await shelf.take(path)
    with pytest.raises(UnknownAdapter):
        shelf.path("a" * 64)


# Room


async def filled(shelf: Shelf, folder: Path, clock: Clock, *words: str) -> list[str]:
    taken = []
    for word in words:
        taken.append(await shelf.take(write(folder / f"{word}.safetensors", lora(word))))
        clock.now += 100
    return taken


async def test_what_was_not_asked_for_the_longest_time_makes_room(tmp_path: Path) -> None:
    clock = Clock(1e9)
    shelf = made(tmp_path, clock=clock, max_bytes=3 * SIZE)
    a, b, c = await filled(shelf, tmp_path, clock, "a", "b", "c")
    shelf.path(a)
    clock.now += 100
    [d] = await filled(shelf, tmp_path, clock, "d")
    assert [each in shelf for each in (a, b, c, d)] == [True, False, True, True]
    assert shelf.held_bytes == 3 * SIZE
    await asyncio.sleep(0.1)
    assert len(lying(shelf)) == 3


async def test_what_is_in_use_stays_and_what_does_not_fit_is_told(tmp_path: Path) -> None:
    clock, used = Clock(1e9), set[str]()
    shelf = made(tmp_path, clock=clock, max_bytes=2 * SIZE, pinned=lambda: used)
    a, b = await filled(shelf, tmp_path, clock, "a", "b")
    used |= {a, b}
    with pytest.raises(StorageFull, match="lora_shelf_bytes"):
        await filled(shelf, tmp_path, clock, "c")
    assert {a, b} == {name.partition(".")[0] for name in lying(shelf)}
    used.remove(a)
    [c] = await filled(shelf, tmp_path, clock, "c")
    assert [each in shelf for each in (a, b, c)] == [False, True, True]


async def test_what_was_named_a_moment_ago_stays_too(tmp_path: Path) -> None:
    clock = Clock(1e9)
    shelf = made(tmp_path, clock=clock, max_bytes=SIZE)
    await shelf.take(write(tmp_path / "a.safetensors", INK))
    clock.now += 59
    with pytest.raises(StorageFull):
        await shelf.take(write(tmp_path / "b.safetensors", OIL))
    clock.now += 2
    await shelf.take(write(tmp_path / "b.safetensors", OIL))


async def test_the_order_of_use_outlives_a_restart(tmp_path: Path) -> None:
    clock = Clock(1e9)
    paths = [write(tmp_path / f"{word}.safetensors", lora(word)) for word in "ab"]
    first = made(tmp_path, clock=Clock(paths[0].stat().st_ctime + 5))
    a, b = [await first.take(path) for path in paths]
    os.utime(first.path(a), (1e9, 1e9))
    os.utime(first.path(b), (1e9 + 1, 1e9 + 1))
    # Named again, and known.
    assert await first.take(paths[0]) == a
    clock.now = paths[0].stat().st_ctime + 1000
    second = made(tmp_path, clock=clock, max_bytes=2 * SIZE)
    assert second.held_bytes == 2 * SIZE
    await filled(second, tmp_path, clock, "c")
    assert (a in second, b in second) == (True, False)


async def test_a_copy_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", INK)
    shelf = made(tmp_path, clock=Clock(path.stat().st_ctime + 5))
    taken = await shelf.take(path)
    shelf.path(taken).unlink()
    assert await shelf.take(path) == taken
    assert shelf.path(taken).read_bytes() == INK


# Halfway


async def test_a_file_that_is_still_written_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", INK)

    def opened() -> BinaryIO:
        file = path.open("rb")
        read = file.read

        def grown(size: int = -1) -> bytes:
            # The times of files go by the ticks of a clock.
            os.utime(path)
            return read(size)

        file.read = grown  # type: ignore[method-assign]
        return file

    os.utime(path, (1e9, 1e9))
    shelf = made(tmp_path)
    with pytest.raises(InvalidAdapter, match="changed while it was read"):
        await shelf.take_opened(opened)
    assert lying(shelf) == set()


async def test_what_comes_is_held_to_its_announced_size(tmp_path: Path) -> None:
    shelf = made(tmp_path)
    for content, said in ((INK + b"x", "grew"), (INK[:-1], "cut off"), (bytes(SIZE), "no JSON")):
        with pytest.raises(InvalidAdapter, match=said):
            await shelf.receive(SIZE, lambda incoming, content=content: incoming.write(content))  # type: ignore[misc]
    assert await shelf.receive(SIZE, lambda incoming: incoming.write(INK)) == sha256(INK)
    assert lying(shelf) == {f"{sha256(INK)}.safetensors"}


async def test_what_nobody_waits_for_stops_and_leaves_no_trace(tmp_path: Path) -> None:
    shelf = made(tmp_path)
    begun, go = threading.Event(), threading.Event()

    def fill(incoming: Incoming) -> None:
        incoming.write(INK[:10])
        begun.set()
        go.wait(10)
        incoming.write(INK[10:])

    task = asyncio.create_task(shelf.receive(SIZE, fill))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.01)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lying(shelf) == set()
    assert (shelf.held_bytes, shelf._reserved) == (0, 0)


KILLED = """
import asyncio, pathlib, sys
from gateway.loras.shelf import Shelf
from tests.loras import lora, write

async def main():
    folder = pathlib.Path(sys.argv[1])
    shelf = Shelf(folder / "shelf", max_file_bytes=1 << 30, max_bytes=1 << 40)
    for number in range(1000):
        path = write(folder / "x.safetensors", lora(str(number), filler=1 << 22))
        print(await shelf.take(path), flush=True)

asyncio.run(main())
"""


async def test_a_kill_at_any_moment_leaves_only_whole_files(tmp_path: Path) -> None:
    for round_ in range(5):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        told = {child.stdout.readline().decode().strip()}
        await asyncio.sleep(0.011 * round_)
        child.send_signal(signal.SIGKILL)
        told |= set(child.communicate()[0].decode().split())
        shelf = made(tmp_path, max_bytes=1 << 40)
        names = lying(shelf)
        assert {f"{each}.safetensors" for each in told} <= names
        for name in names:
            assert sha256((shelf.folder / name).read_bytes()) == name.partition(".")[0]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "shelf").write_text("")
    with pytest.raises(ConfigError, match="cannot be used for LoRAs"):
        made(tmp_path)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "notes.part").write_text("mine")
    (tmp_path / "shelf" / f"{'a' * 32}.part").write_text("left over")
    shelf = made(tmp_path)
    assert lying(shelf) == {"notes.part"}
    assert isinstance(shelf._pinned(), Collection)
