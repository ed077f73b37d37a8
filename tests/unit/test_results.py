"""Results: who finds a picture and who does not, how many are kept and for how long, and what a restart changes."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.results import PATH, Results
from shared.cards import ImageFormat
from shared.errors import ConfigError, Gone, RouteNotFound, StorageFull

SECRET = b"s" * 32
PICTURE = b"\x89PNG\r\n\x1a\n" + b"p" * 92


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.25

    def __call__(self) -> float:
        return self.now


Open = Callable[..., Results]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Open:
    """Opens the results of one folder, again and again."""

    def open_(secret: bytes = SECRET, keep_seconds: float = 60, max_bytes: int = 1000) -> Results:
        return Results(tmp_path / "results", secret, keep_seconds=keep_seconds, max_bytes=max_bytes, clock=clock)

    return open_


@pytest.fixture
def results(opened: Open) -> Results:
    return opened()


async def save(results: Results, image: bytes = PICTURE, form: ImageFormat = "png") -> str:
    """Keep a picture; the name its path ends in."""
    with results.reserve(len(image)) as room:
        path = await results.save(image, form, room)
    assert path.startswith(PATH)
    return path.removeprefix(PATH)


def lying(results: Results) -> list[Path]:
    return list(results.folder.iterdir())


# Who finds it


@pytest.mark.parametrize(("form", "suffix"), [("png", ".png"), ("jpeg", ".jpeg"), ("webp", ".webp")])
async def test_a_picture_is_found_by_its_name(results: Results, form: ImageFormat, suffix: str) -> None:
    name = await save(results, memoryview(PICTURE), form)  # type: ignore[arg-type]
    assert name.endswith(suffix)
    kept = results.find(name)
    assert kept.path.read_bytes() == PICTURE
    assert kept.form == form
    assert kept.seconds_left == 60


async def test_no_two_names_are_alike(results: Results) -> None:
    names = {await save(results, b"x") for _ in range(50)}
    assert len({name.split(".")[0] for name in names}) == len({name.split(".")[2] for name in names}) == 50


async def test_any_other_character_anywhere_finds_nothing(results: Results) -> None:
    name = await save(results)
    for place, was in enumerate(name):
        for other in "0aZ_-.%/\0é":
            if other != was:
                with pytest.raises(RouteNotFound):
                    results.find(name[:place] + other + name[place + 1 :])


async def test_a_name_is_taken_whole(results: Results) -> None:
    name = await save(results)
    for place in range(len(name)):
        for wrong in (name[:place], name[place + 1 :], name[:place] + name[place] + name[place:]):
            with pytest.raises(RouteNotFound):
                results.find(wrong)
    for wrong in (name + "\n", " " + name, name.upper(), f"./{name}", f"{name}.part", name + "\0", name * 1000):
        with pytest.raises(RouteNotFound):
            results.find(wrong)


async def test_neither_the_expiry_nor_the_format_can_be_changed(results: Results) -> None:
    id_, expires, signature, suffix = (await save(results)).split(".")
    for changed in (f"{id_}.{int(expires) + 1}.{signature}.{suffix}", f"{id_}.{expires}.{signature}.webp"):
        with pytest.raises(RouteNotFound):
            results.find(changed)


async def test_what_lies_in_the_folder_is_not_found_without_a_signature(results: Results) -> None:
    await save(results)
    (path,) = lying(results)
    for wrong in (path.name, path.stem, str(path), path.name.replace(".", f".{'A' * 43}.", 2)):
        with pytest.raises(RouteNotFound):
            results.find(wrong)


async def test_another_folders_secret_finds_nothing(results: Results, opened: Open) -> None:
    name = await save(results)
    with pytest.raises(RouteNotFound):
        opened(secret=b"t" * 32).find(name)


# For how long


async def test_it_is_there_until_it_expires_and_then_gone(results: Results, clock: Clock) -> None:
    name = await save(results)
    clock.now += 59.5
    assert results.find(name).seconds_left == 1
    clock.now += 10
    with pytest.raises(Gone):
        results.find(name)
    # Still there for nobody, and gone for good after the sweep.
    assert len(lying(results)) == 1
    await results.sweep()
    assert lying(results) == []
    assert (results.files, results.held_bytes) == (0, 0)
    with pytest.raises(Gone):
        results.find(name)


async def test_the_sweep_leaves_what_has_not_expired(results: Results, clock: Clock) -> None:
    old = await save(results)
    clock.now += 30
    new = await save(results)
    clock.now += 45
    await results.sweep()
    assert results.find(new).path.exists()
    assert (results.files, results.held_bytes) == (1, len(PICTURE))
    with pytest.raises(Gone):
        results.find(old)


async def test_a_file_that_cannot_be_removed_still_counts(results: Results, clock: Clock) -> None:
    name = await save(results)
    path = results.find(name).path
    path.unlink()
    path.mkdir()
    clock.now += 100
    await results.sweep()
    assert (results.files, results.held_bytes) == (1, len(PICTURE))
    path.rmdir()
    await results.sweep()
    assert (results.files, results.held_bytes) == (0, 0)


# How many


async def test_more_than_the_bound_is_refused_before_it_is_made(results: Results) -> None:
    with results.reserve(1000), pytest.raises(StorageFull), results.reserve(1):
        pytest.fail("there was room")
    with results.reserve(1000):
        pass
    with pytest.raises(StorageFull), results.reserve(1001):
        pytest.fail("there was room")


async def test_reservations_at_the_same_time_share_the_bound(results: Results) -> None:
    came: list[str] = []

    async def ask() -> None:
        try:
            with results.reserve(300) as room:
                await asyncio.sleep(0)
                came.append(await results.save(b"x" * 300, "png", room))
        except StorageFull:
            came.append("full")

    await asyncio.gather(*(ask() for _ in range(10)))
    assert came.count("full") == 7
    assert (results.files, results.held_bytes) == (3, 900)


async def test_what_was_reserved_and_not_used_is_free_again(results: Results) -> None:
    with results.reserve(900) as room:
        await results.save(b"x" * 100, "png", room)
        assert room.left == 800
        with pytest.raises(StorageFull), results.reserve(101):
            pytest.fail("there was room")
    with results.reserve(900):
        pass


async def test_a_picture_larger_than_its_reservation_takes_what_is_free(results: Results) -> None:
    with results.reserve(10) as room:
        await results.save(b"x" * 500, "png", room)
        with pytest.raises(StorageFull):
            await results.save(b"x" * 501, "png", room)
        await results.save(b"x" * 500, "png", room)
    assert (results.files, results.held_bytes) == (2, 1000)


async def test_a_reservation_ends_with_its_block_however_that_ends(results: Results) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="no"), results.reserve(1000):
            raise ValueError("no")


async def test_a_reservation_that_has_ended_gives_nothing(results: Results) -> None:
    with results.reserve(1000) as room:
        pass
    with results.reserve(1000), pytest.raises(StorageFull):
        await results.save(b"x", "png", room)
    await results.save(b"x" * 1000, "png", room)


async def test_after_the_sweep_there_is_room_again(results: Results, clock: Clock) -> None:
    await save(results, b"x" * 1000)
    clock.now += 100
    await results.sweep()
    assert results.held_bytes == 0
    await save(results, b"x" * 1000)
    assert results.held_bytes == 1000


async def test_a_full_disk_is_told_and_leaves_nothing(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageFull, match="disk"):
        await save(results)
    assert lying(results) == []
    assert (results.files, results.held_bytes) == (0, 0)


async def test_who_stops_waiting_for_a_write_leaves_nothing_uncounted(results: Results, clock: Clock) -> None:
    # One thread: what is asked of it next waits for the write.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    saving = asyncio.create_task(save(results))
    await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert (results.files, results.held_bytes) == (1, len(PICTURE))
    # The thread went on; nobody will be told the name of what it wrote.
    assert await asyncio.to_thread(lambda: [path.suffix for path in lying(results)]) == [".png"]
    clock.now += 100
    await results.sweep()
    assert lying(results) == []
    assert (results.files, results.held_bytes) == (0, 0)


# On disk


async def test_only_we_may_read_it(results: Results) -> None:
    await save(results)
    (path,) = lying(results)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_folder_that_others_could_read_is_closed(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir(mode=0o755)
    opened()
    assert stat.S_IMODE((tmp_path / "results").stat().st_mode) == 0o700


async def test_a_picture_is_written_off_the_loop(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    real = os.open

    def spied(path: os.PathLike[str], *args: int) -> int:
        threads.append(asyncio._get_running_loop() is None)
        return real(path, *args)

    monkeypatch.setattr(os, "open", spied)
    await save(results)
    assert threads == [True]


async def test_after_a_restart_the_same_paths_hold(results: Results, opened: Open, clock: Clock) -> None:
    names = [await save(results, bytes(10 * count)) for count in (1, 2, 3)]
    again = opened(keep_seconds=5, max_bytes=70)
    assert (again.files, again.held_bytes) == (3, 60)
    assert [again.find(name).path.stat().st_size for name in names] == [10, 20, 30]
    # Also for as long as they were promised, whatever is promised now.
    assert again.find(names[0]).seconds_left == 60
    with pytest.raises(StorageFull), again.reserve(11):
        pytest.fail("there was room")
    clock.now += 61
    with pytest.raises(Gone):
        again.find(names[0])


async def test_a_start_removes_what_expired_and_what_was_never_finished(
    results: Results, opened: Open, clock: Clock
) -> None:
    await save(results)
    clock.now += 30
    name = await save(results)
    kept = results.find(name).path
    part = kept.with_name("0" * 32 + f".{int(clock.now) + 60}.png.part")
    part.write_bytes(b"half")
    foreign = kept.with_name("README")
    foreign.write_text("not ours to remove")
    clock.now += 45
    again = opened()
    assert set(lying(again)) == {kept, foreign}
    assert (again.files, again.held_bytes) == (1, len(PICTURE))


async def test_the_sweep_removes_the_part_of_a_write_that_is_long_over(results: Results, clock: Clock) -> None:
    part = results.folder / ("0" * 32 + f".{int(clock.now) + 60}.png.part")
    part.write_bytes(b"half")
    await results.sweep()
    assert part.exists()
    clock.now += 100
    await results.sweep()
    assert not part.exists()


def test_a_folder_that_cannot_be_used_is_told(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(ConfigError, match="cannot be used for results"):
        opened()
