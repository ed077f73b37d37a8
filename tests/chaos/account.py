"""What was asked and told of LoRAs in a storm, and what its gateways have written down of it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.loras import LoraState
from tests.chaos.history import CLOCK_SECONDS, SETTLED_SECONDS, Life
from tests.chaos.orders import Command, Held


@dataclass(frozen=True)
class Row:
    """A decision: whether it is one for it, who asked, and when: in Unix seconds, just before it was written."""

    model: str
    epoch: int
    held: Held
    at: float
    committed: bool = True
    by: str = "anonymous"

    @property
    def asked(self) -> bool:
        """Whether a client has asked for it."""
        return self.by not in ("revert", "restart")


@dataclass(frozen=True)
class Look:
    """What the list of LoRAs said of one model, at some moment between `sent` and `ended`, of which gateway."""

    life: Life
    sent: float
    ended: float
    view: dict[str, Any]


@dataclass(frozen=True)
class Reign:
    """From when until when, at the most, an epoch was the one that is wanted."""

    row: Row
    since: float
    until: float

    def within(self, sent: float, ended: float | None) -> bool:
        """Whether it may have been at some moment of these."""
        end = float("inf") if ended is None else ended
        return self.since <= end + CLOCK_SECONDS and self.until + SETTLED_SECONDS >= sent


@dataclass
class Account:
    """What was asked and told of LoRAs; `strikes` are the moments since when some replica may have a fault."""

    timeout_seconds: float
    commands: list[Command] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    strikes: list[float] = field(default_factory=list)

    def known(self, model: str) -> int:
        """The highest epoch of a model that anybody has told."""
        told = [each.told["wanted"] for each in self.commands if each.order.model == model and each.told]
        told += [each.view["wanted"] for each in self.looks if each.view["model"] == model]
        return max((int(each["epoch"]) for each in told), default=0)

    def figures(self) -> Counter[str]:
        """How many changes came to what."""
        return Counter(command.outcome for command in self.commands)


def read_rows(database: Path) -> list[Row]:
    """The decisions in the database of a data folder, oldest first; none where there is no database."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        query = 'SELECT model, epoch, state, names, at, status, "by" FROM lora_epochs ORDER BY model, epoch'
        found = connection.execute(query).fetchall()
    rows = []
    for model, epoch, state, names, at, status, by in found:
        nicknames = frozenset((name, it["sha256"]) for name, it in json.loads(names).items())
        held = Held(LoraState.model_validate_json(state), nicknames)
        rows.append(Row(model, epoch, held, at, status == "committed", by))
    return rows


def settled(view: dict[str, Any], replicas: int) -> bool:
    """Whether so many replicas are all in the epoch that is wanted, with the same weights."""
    rows = view["replicas"]
    same = {(row["epoch"], row["digest"]) for row in rows} == {(view["wanted"]["epoch"], view["wanted"]["digest"])}
    prints = {(row["class"], row["fingerprint"]) for row in rows}
    return bool(view["converged"]) and len(rows) == replicas and same and len(prints) == 1
