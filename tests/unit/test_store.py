"""The database: what was decided stays, whatever becomes of the process; what is wrong with the file is said."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.store import schema
from gateway.store.database import NAME, Database
from gateway.store.epochs import Epoch, Epochs, Nickname
from shared.errors import ConfigError, Internal, StorageFull
from shared.loras import NO_LORAS, Adapter, LoraState
from tests.house.tree import ROOT

INK = LoraState(adapters=(Adapter(name="ink", sha256="a" * 64, scale=0.7, target="unet"),), mode="merged")
FIRST = Epoch(
    model="org/sdxl",
    epoch=1,
    source="/models/sdxl",
    state=INK,
    names={"ink": Nickname("a" * 64, "styles/ink.safetensors"), "Öl": Nickname("b" * 64, "imported/oil")},
    by="key1",
    at=1_700_000_000.25,
)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Epochs]:
    database = Database(folder)
    database.prepare()
    try:
        yield Epochs(database)
    finally:
        await database.close()


async def test_what_was_decided_is_read_back_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        assert (await epochs.last("org/sdxl"), await epochs.highest("org/sdxl")) == (None, 0)
        await epochs.commit(FIRST)
        await epochs.commit(replace(FIRST, model="other", epoch=7, state=NO_LORAS, names={}))
        assert await epochs.last("org/sdxl") == FIRST
    async with opened(tmp_path) as epochs:
        assert await epochs.last("org/sdxl") == FIRST
        assert await epochs.highest("other") == 7


async def test_a_decision_against_takes_its_number_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(FIRST)
        refused = replace(FIRST, epoch=2, state=NO_LORAS, reason="gpu0: it has NaN in it")
        await epochs.abort(refused)
        assert await epochs.last("org/sdxl") == FIRST
        assert await epochs.latest("org/sdxl") == replace(refused, status="aborted")
        assert await epochs.highest("org/sdxl") == 2


async def test_what_held_before_a_decision_is_the_last_that_was_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(FIRST)
        assert await epochs.before(FIRST) is None
        await epochs.commit(replace(FIRST, model="other"))
        await epochs.abort(replace(FIRST, epoch=2, state=NO_LORAS))
        await epochs.commit(third := replace(FIRST, epoch=3, state=NO_LORAS))
        assert await epochs.before(third) == FIRST


async def test_a_number_is_never_used_twice(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(FIRST)
        for again in (epochs.commit, epochs.abort):
            with pytest.raises(Internal, match="UNIQUE"):
                await again(replace(FIRST, state=NO_LORAS))
        assert await epochs.last("org/sdxl") == FIRST


async def test_decisions_made_at_once_are_all_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await asyncio.gather(*(epochs.commit(replace(FIRST, epoch=number)) for number in range(1, 51)))
        assert await epochs.highest("org/sdxl") == 50


async def test_the_loop_runs_on_while_it_is_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(replace(FIRST, epoch=9, model="other"))
        with closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(epochs.commit(FIRST))
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert not waiting.done()
            other.execute("COMMIT")
        await waiting
        assert await epochs.last("org/sdxl") == FIRST


async def test_a_decision_is_finished_though_nobody_waits_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.highest("org/sdxl")
        task = asyncio.create_task(epochs.commit(FIRST))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await epochs.last("org/sdxl") == FIRST


KILLED = """
import asyncio, os, pathlib, sys
from dataclasses import replace
from gateway.store.database import Database
from gateway.store.epochs import Epochs
from tests.unit.test_store import FIRST

async def main():
    database = Database(pathlib.Path(sys.argv[1]))
    database.prepare()
    epochs = Epochs(database)
    for number in range(1, 1000):
        await epochs.commit(replace(FIRST, epoch=number))
        os.write(1, b"%d\\n" % number)

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 3, 20])
async def test_a_decision_outlives_a_kill_at_any_moment_after_it(tmp_path: Path, after: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert child.stdout is not None
        for _ in range(after):
            said = int(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0].split()
    said = int(rest[-1]) if rest else said
    async with opened(tmp_path) as epochs:
        assert await epochs.highest("org/sdxl") in (said, said + 1)
        last = await epochs.last("org/sdxl")
        assert last == replace(FIRST, epoch=last.epoch if last else 0)


async def test_each_commit_is_synced_to_the_disk(tmp_path: Path) -> None:
    """FULL, in a log that is written ahead: with NORMAL the last commits would go with the power."""
    database = Database(tmp_path)
    database.prepare()
    from sqlalchemy import text

    assert [dict(row) for row in await database.read(text("PRAGMA synchronous"))] == [{"synchronous": 2}]
    assert [dict(row) for row in await database.read(text("PRAGMA journal_mode"))] == [{"journal_mode": "wal"}]
    await database.close()


async def test_it_is_for_our_eyes_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(FIRST)
        assert {path.name for path in tmp_path.iterdir()} == {NAME, f"{NAME}-wal", f"{NAME}-shm"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


async def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(FIRST)
        from sqlalchemy import text

        # As a disk that is full by now.
        await epochs._database.read(text("PRAGMA max_page_count = 1"))
        with pytest.raises(StorageFull):
            await epochs.commit(replace(FIRST, epoch=2, reason="x" * 100_000))
        assert await epochs.last("org/sdxl") == FIRST
        await epochs._database.read(text("PRAGMA max_page_count = 100000"))
        await epochs.commit(replace(FIRST, epoch=2))


async def test_a_file_that_cannot_be_made_is_told_without_its_place(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        (tmp_path / NAME).mkdir()
        with pytest.raises(Internal) as caught:
            await epochs.commit(FIRST)
        assert str(tmp_path) not in caught.value.message
        (tmp_path / NAME).rmdir()
        await epochs.commit(FIRST)
        assert await epochs.last("org/sdxl") == FIRST


# The file, before anything uses it


def test_an_older_file_is_brought_up_to_date_and_a_new_one_has_the_tables_we_use(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine

    from gateway.store.tables import METADATA

    assert schema.prepare(tmp_path / NAME) is False
    schema.make(tmp_path / NAME)
    assert schema.prepare(tmp_path / NAME) is True
    engine = create_engine(f"sqlite:///{tmp_path / NAME}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == schema.HEAD
    engine.dispose()
    steps = ScriptDirectory(str(ROOT / "gateway/store/migrations"))
    assert steps.get_heads() == [schema.HEAD]


LOOKING = """
import asyncio, pathlib, sys
from gateway.store.database import Database
from gateway.store.epochs import Epochs

database = Database(pathlib.Path(sys.argv[1]))
database.prepare()
if database.is_new:
    assert asyncio.run(Epochs(database).last("m")) is None
    assert asyncio.run(Epochs(database).highest("m")) == 0
print(database.is_new, "sqlalchemy" in sys.modules)
"""


@pytest.mark.parametrize("is_new", [True, False])
def test_nothing_heavy_is_imported_where_nothing_is_to_do(tmp_path: Path, is_new: bool) -> None:
    if not is_new:
        schema.make(tmp_path / NAME)
    program = [sys.executable, "-c", LOOKING, str(tmp_path)]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout == f"{is_new} False\n", ran.stderr
    assert (tmp_path / NAME).exists() == (not is_new)


def test_a_file_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="Replicast never wrote"):
        schema.prepare(path)
    assert path.read_bytes() == before


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """The table is there already, so that the step that makes it cannot be carried out."""
    path = tmp_path / NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE lora_epochs (x)")
    with pytest.raises(ConfigError, match="already exists"):
        schema.make(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name, sql FROM sqlite_master").fetchall() == [
            ("lora_epochs", "CREATE TABLE lora_epochs (x)")
        ]


async def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(FIRST)
    path = tmp_path / NAME
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'r9999'")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"newer Replicast \(schema r9999"):
        schema.prepare(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"nonsense" * 1000), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be used"),
    ],
)
async def test_a_spoilt_file_is_refused_and_left_alone(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    async with opened(tmp_path) as epochs:
        await epochs.commit(FIRST)
    path = tmp_path / NAME
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(ConfigError, match=said) as caught:
        schema.prepare(path)
    assert str(path) in caught.value.message
    assert (path.read_bytes() if path.is_file() else b"") == before


async def test_no_flipped_byte_makes_another_state(tmp_path: Path) -> None:
    """It is refused, or does no harm; and what is refused is not written to."""
    async with opened(tmp_path) as epochs:
        for number in range(1, 30):
            await epochs.commit(replace(FIRST, epoch=number))
    path = tmp_path / NAME
    whole, rng, refused = path.read_bytes(), random.Random(7), 0
    # Where there is something: most of a new file's pages is room.
    places = rng.sample([place for place, byte in enumerate(whole) if byte], 200)
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        for beside in tmp_path.glob(f"{NAME}-*"):
            beside.unlink()
        try:
            async with opened(tmp_path) as epochs:
                last = await epochs.last("org/sdxl")
                assert last is None or last.state == INK
        except ConfigError:
            refused += 1
            assert path.read_bytes() == spoilt
        except Internal:
            refused += 1
    assert refused > 10


async def test_a_log_that_was_cut_loses_nothing_that_came_before_the_cut(tmp_path: Path) -> None:
    whole, copy, seen = tmp_path / "whole", tmp_path / "copy", set()
    whole.mkdir()
    copy.mkdir()
    async with opened(whole) as epochs:
        await epochs.commit(FIRST)
        await epochs.commit(replace(FIRST, epoch=2))
        base, log = ((whole / f"{NAME}{end}").read_bytes() for end in ("", "-wal"))
    for cut in (*range(0, len(log), 512), len(log)):
        for path in copy.iterdir():
            path.unlink()
        (copy / NAME).write_bytes(base)
        (copy / f"{NAME}-wal").write_bytes(log[:cut])
        async with opened(copy) as epochs:
            seen.add(await epochs.highest("org/sdxl"))
    assert seen == {0, 1, 2}
