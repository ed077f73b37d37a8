"""The catalogue: LoRAs that were imported, each a folder of its own with the file and what is known of it.

`<folder>/imported/<slug>/adapter.safetensors` and `metadata.json` beside it; the shape is image-pool's.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from gateway.loras.incoming import Incoming, sync_folder
from gateway.loras.inspection import Inspection, inspect
from gateway.loras.shelf import Open
from gateway.loras.threads import whole
from shared import logs
from shared.cards import Part
from shared.errors import ConfigError, InvalidAdapter, StorageFull
from shared.safetensors import read_header

_FILE, _METADATA = "adapter.safetensors", "metadata.json"
_KIND = "imported"
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_SLUG_LETTERS = 80
_CHUNK_BYTES = 4 << 20
_MOST_METADATA_BYTES = 1 << 20
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.(part|gone)")

log = logs.get("catalogue")


class About(Part):
    """What its owner says of a LoRA."""

    name: str
    family: str
    compatible_models: tuple[str, ...]
    trained_on_model_id: str = ""
    trigger_words: tuple[str, ...] = ()
    default_strength: float | None = None
    description: str = ""
    source_url: str = ""


class Record(About):
    """One LoRA of the catalogue, as it is kept beside its file; `imported_at` is in Unix seconds."""

    id: str
    sha256: str
    size_bytes: int
    rank: int
    targets: tuple[str, ...]
    imported_at: int


class Catalogue:
    """The imported LoRAs in `folder`, while this process owns it. Call from one event loop."""

    def __init__(self, folder: Path, *, max_file_bytes: int, max_bytes: int) -> None:
        """Make the folder, or take what lies in it. Blocks. Raises ConfigError where that cannot be done."""
        self._folder = folder / _KIND
        self._max_file_bytes, self._max_bytes = max_file_bytes, max_bytes
        # One change at a time: names are given in turn, and bytes counted.
        self._turn = asyncio.Lock()
        try:
            for each in (folder, self._folder):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._records = {record.id: record for record in _scan(self._folder)}
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used for LoRAs: {error.strerror}", param="data_dir") from error

    @property
    def records(self) -> list[Record]:
        """All of them, by their ids."""
        return [self._records[id_] for id_ in sorted(self._records)]

    def get(self, id_: str) -> Record | None:
        """The one with this id, if there is one."""
        return self._records.get(id_)

    def find(self, text: str) -> Record | None:
        """The one that is meant by an id, a name that only one has, or the path of its file; None if there is none."""
        if text in self._records:
            return self._records[text]
        meant = [r for r in self._records.values() if text == r.name or text == str(self.path(r))]
        return meant[0] if len(meant) == 1 else None

    def path(self, record: Record) -> Path:
        """Where its file lies."""
        return self._folder / record.id.partition("/")[2] / _FILE

    async def add(self, opened: Open, about: About, now: float) -> Record:
        """Copy a LoRA file into the catalogue, durably and whole. `opened` opens it in a thread; `now` is Unix time.

        Raises what `opened` raises, InvalidAdapter saying what is wrong with the file, and StorageFull.
        """
        async with self._turn:
            left = self._max_bytes - sum(record.size_bytes for record in self._records.values())

            def done(record: Record) -> None:
                self._records[record.id] = record

            return await whole(partial(self._add, opened, about, int(now), left), done)

    async def examine(self, opened: Open) -> tuple[Inspection, str]:
        """What a file is, and its sha256. Raises what `opened` raises, and InvalidAdapter."""
        return await asyncio.to_thread(self._examine, opened)

    async def delete(self, record: Record) -> None:
        """Remove one for good. What the shelf has of it stays there while it is in use."""
        async with self._turn:
            if self._records.pop(record.id, None) is not None:
                await asyncio.to_thread(self._delete, record)

    def _examine(self, opened: Open) -> tuple[Inspection, str]:
        with opened() as file:
            header = read_header(file)
            self._expect_size(header.size)
            file.seek(0)
            digest = hashlib.sha256()
            while piece := file.read(_CHUNK_BYTES):
                digest.update(piece)
            return inspect(header), digest.hexdigest()

    def _expect_size(self, size: int) -> None:
        if size > self._max_file_bytes:
            raise InvalidAdapter(f"it has {size} bytes; at most {self._max_file_bytes} are taken (lora_max_bytes)")

    def _delete(self, record: Record) -> None:
        # Gone at once and whole, however long a file system takes to free it.
        gone = self._folder / f".{secrets.token_hex(16)}.gone"
        with suppress(FileNotFoundError):
            self.path(record).parent.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _add(self, opened: Open, about: About, now: int, left: int, stop: threading.Event) -> Record:
        part = self._folder / f".{secrets.token_hex(16)}.part"
        try:
            with opened() as file:
                header = read_header(file)
                self._expect_size(header.size)
                if header.size > left:
                    raise StorageFull(
                        f"The catalogue may hold {self._max_bytes} bytes (lora_shelf_bytes): delete some."
                    )
                seen = inspect(header)
                part.mkdir(mode=0o700)
                file.seek(0)
                with Incoming(part, header.size, stop) as incoming:
                    incoming.copy(file)
                    sha256 = incoming.finish(_FILE)
            slug = self._free_slug(about.name)
            record = Record(
                **about.model_dump(),
                id=f"{_KIND}/{slug}",
                sha256=sha256,
                size_bytes=header.size,
                rank=seen.rank,
                targets=seen.targets,
                imported_at=now,
            )
            _write(part / _METADATA, record)
            sync_folder(part)
            part.rename(self._folder / slug)
            sync_folder(self._folder)
            return record
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull("The server's disk has no room for the LoRA.") from error
            raise InvalidAdapter(f"it cannot be read: {error.strerror}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _free_slug(self, name: str) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_SLUG_LETTERS].strip("-") or "lora"
        number, free = 1, slug
        while (self._folder / free).exists():
            number += 1
            free = f"{slug}-{number}"
        return free


def _write(path: Path, record: Record) -> None:
    content = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False).encode()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _scan(folder: Path) -> list[Record]:
    """What lies in the folder. What was never finished is removed; what cannot be read is told, and left alone."""
    records = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry)
            if _UNFINISHED.fullmatch(entry.name):
                shutil.rmtree(path, ignore_errors=True)
                continue
            if not _SLUG.fullmatch(entry.name):
                continue
            try:
                with (path / _METADATA).open("rb") as file:
                    record = Record.model_validate_json(file.read(_MOST_METADATA_BYTES))
                size = (path / _FILE).stat().st_size
            except (OSError, ValidationError) as error:
                log.warning("lora_left_out", folder=entry.name, reason=str(error)[:200])
                continue
            records.append(record.model_copy(update={"id": f"{_KIND}/{entry.name}", "size_bytes": size}))
    return records
