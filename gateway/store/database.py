"""The database file while this process owns its folder: one connection, off the event loop, each commit on the disk.

SQLAlchemy takes longer to import than all the rest of a request: it is imported when the file is first asked.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.store import schema
from shared import logs
from shared.errors import ConfigError, Internal, StorageFull

if TYPE_CHECKING:
    from sqlalchemy import Executable
    from sqlalchemy.engine import RowMapping
    from sqlalchemy.ext.asyncio import AsyncEngine

NAME = "replicast.db"

log = logs.get("store")

T = TypeVar("T")


class Database:
    """`<folder>/replicast.db`. Call `prepare` before the loop runs, `close` at the end; the rest is of one loop."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._engine: AsyncEngine | None = None
        self._made = False
        self._opening = asyncio.Lock()

    def prepare(self) -> None:
        """Look at the file, and bring an older one to this version's schema. Blocks. Raises ConfigError.

        A new folder gets its file when it is first asked for something.
        """
        self._made = schema.prepare(self.path)

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever written: nobody need ask then, which takes a while the first time."""
        return not self._made

    async def read(self, query: Executable) -> list[RowMapping]:
        """The rows of a query. Raises Internal if the file has become unreadable."""
        return await _whole(self._run(query, read=True))

    async def write(self, statement: Executable) -> None:
        """Carry out one statement, on the disk when this returns; also if whoever waits for it is cancelled.

        Raises StorageFull, or Internal; then nothing was written.
        """
        await _whole(self._run(statement, read=False))

    async def close(self) -> None:
        """Let go of the file; what was written stays."""
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    async def _run(self, statement: Executable, *, read: bool) -> list[RowMapping]:
        engine = await self._opened()
        from sqlalchemy.exc import DBAPIError

        try:
            async with engine.begin() as connection:
                result = await connection.execute(statement)
                return list(result.mappings()) if read else []
        except DBAPIError as error:
            code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise StorageFull("The server's disk has no room to write this down.") from error
            raise Internal(f"The server's database fails: {error.orig}") from error
        except ValueError as error:
            raise Internal("The server's database is damaged: it holds what is no JSON.") from error

    async def _opened(self) -> AsyncEngine:
        async with self._opening:
            if not self._made:
                try:
                    await asyncio.to_thread(schema.make, self.path)
                except ConfigError as error:
                    log.error("database_not_made", reason=error.message)
                    raise Internal("The server's database cannot be made; its log says why.") from error
                self._made = True
            if self._engine is None:
                self._engine = await asyncio.to_thread(_engine, self.path)
            return self._engine


def _engine(path: Path) -> AsyncEngine:
    from sqlalchemy import event
    from sqlalchemy.ext.asyncio import create_async_engine

    # One connection: SQLite has one writer at a time, and here it is this one.
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        pool_size=1,
        max_overflow=0,
        connect_args={"isolation_level": None, "timeout": schema.BUSY_SECONDS},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in schema.PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Finish what was begun, even for nobody: a commit that is cut short may have happened or not."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
