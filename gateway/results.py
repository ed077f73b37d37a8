"""Pictures behind signed paths: kept in a folder for a while, bounded in bytes, swept when their time is over.

A path carries a random id, the moment it expires, and a signature over both: it is its own permission, and holds after
a restart. The file's name says the same without the signature, so the folder alone tells what is in it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from itsdangerous import Signer

from shared import logs
from shared.cards import ImageFormat
from shared.errors import ConfigError, Gone, RouteNotFound, StorageFull
from shared.wire import Buffer

PATH = "/v1/images/files/"

_FORMS: dict[str, ImageFormat] = {"png": "png", "jpeg": "jpeg", "webp": "webp"}
_ID_BYTES = 16
_ID, _EXPIRES, _SUFFIX = r"(?P<id>[0-9a-f]{32})", r"(?P<expires>[1-9][0-9]{0,11})", r"(?P<suffix>png|jpeg|webp)"
_SIGNED = re.compile(rf"{_ID}\.{_EXPIRES}\.(?P<signature>[A-Za-z0-9_-]{{43}})\.{_SUFFIX}")
_ON_DISK = re.compile(rf"{_ID}\.{_EXPIRES}\.{_SUFFIX}(?P<part>\.part)?")

log = logs.get("results")


@dataclass(frozen=True, slots=True)
class Kept:
    """A picture that is kept: where it lies, what it is, and for how long it will still be there."""

    id: str
    path: Path
    form: ImageFormat
    seconds_left: int


@dataclass(slots=True)
class Reservation:
    """Room for pictures that are still to be made: the bytes of it that none of them has taken yet."""

    left: int


class Results:
    """The folder of results, while this process owns it. Call from one event loop; `clock` is in Unix seconds."""

    def __init__(
        self,
        folder: Path,
        secret: bytes,
        *,
        keep_seconds: float,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the folder, or take what lies in it. Raises ConfigError where that cannot be done."""
        self.folder = folder
        self._signer = Signer(secret, "replicast.results", key_derivation="hmac", digest_method=hashlib.sha256)
        self._keep_seconds, self.max_bytes, self._clock = keep_seconds, max_bytes, clock
        self._reserved = 0
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
            self._held = _tidy(folder, clock(), parts=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used for results: {error.strerror}", param="data_dir") from error
        self._held_bytes = sum(self._held.values())

    @property
    def files(self) -> int:
        """How many pictures are kept."""
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """Their bytes, without what is only reserved."""
        return self._held_bytes

    @contextmanager
    def reserve(self, size: int) -> Iterator[Reservation]:
        """Keep `size` bytes free for this block. Raises StorageFull: ask before the pictures are made."""
        self._expect_room(size)
        room = Reservation(size)
        self._reserved += size
        try:
            yield room
        finally:
            self._reserved -= room.left
            room.left = 0

    async def save(self, image: Buffer, form: ImageFormat, room: Reservation) -> str:
        """Keep a picture; returns the path it is served at. Raises StorageFull where it is larger than its room."""
        size = memoryview(image).nbytes
        taken = min(size, room.left)
        self._expect_room(size - taken)
        room.left -= taken
        self._reserved -= taken
        name = f"{secrets.token_hex(_ID_BYTES)}.{math.ceil(self._clock() + self._keep_seconds)}"
        key = f"{name}.{form}"
        # Before it is written, and for good if nobody waits for that any more: the sweep finds it either way.
        self._held[key] = size
        self._held_bytes += size
        try:
            await asyncio.to_thread(_write, self.folder / key, image)
        except OSError as error:
            self._forget(key)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("The server's disk has no room for the result.") from error
            raise
        return f"{PATH}{name}.{self._signature(key)}.{form}"

    def find(self, name: str) -> Kept:
        """The picture of this name, as a path ends in it. Raises RouteNotFound for a name that was never given out,
        and Gone for one that was.
        """
        match = _SIGNED.fullmatch(name)
        key = f"{match['id']}.{match['expires']}.{match['suffix']}" if match else ""
        # Whole signatures in their one spelling: a decoder would take several for the same.
        if not match or not hmac.compare_digest(self._signature(key), match["signature"]):
            raise RouteNotFound("There is no such image.")
        left = int(match["expires"]) - self._clock()
        if left <= 0 or key not in self._held:
            raise Gone("This image has expired.")
        return Kept(match["id"], self.folder / key, _FORMS[match["suffix"]], int(left))

    async def sweep(self) -> None:
        """Remove what has expired."""
        now = self._clock()
        stays = await asyncio.to_thread(_tidy, self.folder, now)
        for key in [key for key in self._held if key not in stays and _expires(key) <= now]:
            self._forget(key)

    def _expect_room(self, size: int) -> None:
        if size and self._held_bytes + self._reserved + size > self.max_bytes:
            raise StorageFull("The server keeps as many results as it may: try again later, or ask for 'b64_json'.")

    def _forget(self, key: str) -> None:
        self._held_bytes -= self._held.pop(key, 0)

    def _signature(self, key: str) -> str:
        return self._signer.get_signature(key).decode()


def _expires(key: str) -> int:
    return int(key.split(".")[1])


def _write(path: Path, image: Buffer) -> None:
    """Write a picture under its name: there is no moment at which half of it could be read."""
    part = path.with_name(f"{path.name}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(image)
        part.rename(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def _tidy(folder: Path, now: float, *, parts: bool = False) -> dict[str, int]:
    """Remove what has expired and, with `parts`, what was never finished; the size of each picture that stays.

    What has none of our names is left alone.
    """
    stays = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _ON_DISK.fullmatch(entry.name)
            if not match:
                continue
            try:
                if int(match["expires"]) <= now or (match["part"] and parts):
                    Path(entry).unlink()
                elif not match["part"]:
                    stays[entry.name] = entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("result_stays", reason=error.strerror)
                stays[entry.name] = 0
    return stays
