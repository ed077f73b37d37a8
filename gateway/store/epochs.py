"""The decisions about LoRAs: for each model its epochs, each with the whole state that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gateway.store.database import Database
from shared.errors import Internal
from shared.loras import LoraState

if TYPE_CHECKING:
    from sqlalchemy.engine import RowMapping

Status = Literal["committed", "aborted"]


@dataclass(frozen=True, slots=True)
class Nickname:
    """What a client calls an adapter: the file that is meant by it, and how the client named that."""

    sha256: str
    path: str


@dataclass(frozen=True, slots=True)
class Epoch:
    """One decision: `state` was, or was not, to be what `model`, loaded from `source`, is served with.

    `names` are all nicknames that are known with it, active or not; `by` is the id of the key that asked; `at` is in
    Unix seconds; `reason` says why an aborted one was. The status is what it was saved as.
    """

    model: str
    epoch: int
    source: str
    state: LoraState
    names: Mapping[str, Nickname] = field(default_factory=dict)
    reason: str = ""
    by: str = ""
    at: float = 0.0
    status: Status = "committed"


class Epochs:
    """All decisions there ever were. Each is on the disk when the call that made it returns.

    Beside what is said below every call raises Internal where the database cannot be read or written.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last(self, model: str) -> Epoch | None:
        """The decision that holds for this model: the last that was committed."""
        return await self._newest(model, committed=True)

    async def before(self, epoch: Epoch) -> Epoch | None:
        """The decision that held for its model before this one."""
        return await self._newest(epoch.model, committed=True, below=epoch.epoch)

    async def latest(self, model: str) -> Epoch | None:
        """The newest decision about this model, committed or aborted."""
        return await self._newest(model, committed=False)

    async def highest(self, model: str) -> int:
        """The highest number that was ever given to a decision about this model; 0 before the first."""
        if self._database.is_new:
            return 0
        from sqlalchemy import func, select

        from gateway.store.tables import LORA_EPOCHS as TABLE

        query = select(func.max(TABLE.c.epoch).label("epoch")).where(TABLE.c.model == model)
        [row] = await self._database.read(query)
        return int(row["epoch"] or 0)

    async def commit(self, epoch: Epoch) -> None:
        """Decide for it. From here on it holds, whatever happens to this process.

        Raises StorageFull, and Internal for a number that was used before: then nothing has been decided.
        """
        await self._append(epoch, "committed")

    async def abort(self, epoch: Epoch) -> None:
        """Decide against it, so that its number is never used again. Raises as `commit` does."""
        await self._append(epoch, "aborted")

    async def _append(self, epoch: Epoch, status: Status) -> None:
        from sqlalchemy import insert

        from gateway.store.tables import LORA_EPOCHS as TABLE

        row = {
            "model": epoch.model,
            "epoch": epoch.epoch,
            "source": epoch.source,
            "state": epoch.state.model_dump(mode="json"),
            "digest": epoch.state.digest,
            "names": {name: {"sha256": it.sha256, "path": it.path} for name, it in epoch.names.items()},
            "status": status,
            "reason": epoch.reason,
            "by": epoch.by,
            "at": epoch.at,
        }
        await self._database.write(insert(TABLE).values(row))

    async def _newest(self, model: str, *, committed: bool, below: int | None = None) -> Epoch | None:
        if self._database.is_new:
            return None
        from sqlalchemy import select

        from gateway.store.tables import LORA_EPOCHS as TABLE

        query = select(TABLE).where(TABLE.c.model == model).order_by(TABLE.c.epoch.desc()).limit(1)
        if committed:
            query = query.where(TABLE.c.status == "committed")
        if below is not None:
            query = query.where(TABLE.c.epoch < below)
        rows = await self._database.read(query)
        return _epoch(rows[0]) if rows else None


def _epoch(row: RowMapping) -> Epoch:
    what = f"epoch {row['epoch']} of {row['model']!r}"
    try:
        epoch = Epoch(
            model=row["model"],
            epoch=row["epoch"],
            source=row["source"],
            state=LoraState.model_validate(row["state"]),
            names={name: Nickname(it["sha256"], it["path"]) for name, it in row["names"].items()},
            reason=row["reason"],
            by=row["by"],
            at=row["at"],
            status=row["status"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Internal(f"The server's database is damaged: {what} cannot be read.") from error
    # SQLite does not see a byte that changed within a value; and another content under its number must never be served.
    if epoch.state.digest != row["digest"]:
        raise Internal(f"The server's database is damaged: {what} is not what was decided.")
    return epoch
