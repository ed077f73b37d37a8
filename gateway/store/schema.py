"""Looks at the file before anything uses it: whole, and of this version's schema, which it is brought to if it can be.

Nothing is ever removed or begun anew here: what is wrong with the file is said, and left to whoever has a copy of it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from shared.errors import ConfigError

HEAD = "r0001"
BUSY_SECONDS = 10.0
_EMPTY, _UNKNOWN = "", "?"
# Commits are synced to the disk: with less, the last ones would be lost with the power.
PRAGMAS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def prepare(path: Path) -> bool:
    """Whether there is anything in the file; one that is older is brought to this schema, all of the way or not at all.

    Blocks; quick where nothing is to do: SQLAlchemy is imported only for an older file. Raises ConfigError.
    """
    with _told(path):
        if not path.exists():
            return False
        try:
            found = _version(path, "ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            # It was left in the middle of its first write, which has to be taken back first.
            found = _version(path, "rw")
        if found not in (HEAD, _EMPTY):
            _upgrade(path, found)
        return found != _EMPTY


def make(path: Path) -> None:
    """Make the file of a new data folder. Blocks. Raises ConfigError."""
    with _told(path):
        # For us alone. What SQLite puts beside it follows its mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        _upgrade(path, _EMPTY)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if (error.sqlite_errorcode & 0xFF) in _DAMAGED:
            raise ConfigError(
                f"{path} is damaged ({error}): put a copy of it back, or move it away to begin anew, "
                "without what it knows of LoRAs",
                param="data_dir",
            ) from error
        raise ConfigError(f"{path} cannot be used: {error}", param="data_dir") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}", param="data_dir") from error


def _version(path: Path, mode: str) -> str:
    """The schema's version that the file says it has, or _EMPTY, or _UNKNOWN. With `ro` not a byte of it changes."""
    # Whoever opens a file to write also tidies it at the end, which is no good to a damaged one.
    address = f"file:{quote(str(path))}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as connection:
        [[verdict]] = connection.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            damage = sqlite3.DatabaseError(str(verdict).partition("\n")[2] or str(verdict))
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        if "alembic_version" not in tables:
            return _UNKNOWN if tables else _EMPTY
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else _UNKNOWN


def _upgrade(path: Path, found: str) -> None:
    # To import these takes half a second: once in the life of a version.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import NullPool, create_engine, event
    from sqlalchemy.exc import DBAPIError

    config = Config()
    # In a Config a % begins a reference.
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
    if found == _UNKNOWN:
        raise ConfigError(f"{path} holds what Replicast never wrote: move it away", param="data_dir")
    if found not in known and found != _EMPTY:
        raise ConfigError(
            f"{path} was written by a newer Replicast (schema {found}, this one knows {HEAD}): start that one again, "
            "or give another --data-dir",
            param="data_dir",
        )
    # Without an isolation level of its own the driver begins nothing by itself, so that tables can be made in one go.
    engine = create_engine(
        f"sqlite:///{path}", poolclass=NullPool, connect_args={"isolation_level": None, "timeout": BUSY_SECONDS}
    )

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: object) -> None:
        for pragma in PRAGMAS:
            connection.execute(pragma).close()

    @event.listens_for(engine, "begin")
    def begun(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise error.orig from error
        raise
    finally:
        engine.dispose()
