"""The shelf: LoRA files by their content, as copies of our own that nobody changes; workers load from here alone.

A file's name is its sha256, so that equal files lie here once, and a state of the past means the same bytes for ever.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gateway.loras.incoming import Incoming
from gateway.loras.places import SUFFIX, open_file
from gateway.loras.threads import whole
from shared import logs
from shared.errors import ConfigError, InvalidAdapter, StorageFull, UnknownAdapter
from shared.safetensors import read_header

_NAME = re.compile(rf"([0-9a-f]{{64}}){re.escape(SUFFIX)}")
_LEFT_OVER = re.compile(r"[0-9a-f]{32}\.part|[0-9a-f]{64}\.gone")
_MOST_SEEN = 4096
# What was named a moment ago is about to be wanted, though no state says so yet.
_GRACE_SECONDS = 60.0
# A file that changed this recently may change again without its times telling.
_RACY_SECONDS = 1.0

log = logs.get("shelf")

# Opens the file that is meant, each time anew. Blocks, and raises UnknownAdapter.
Open = Callable[[], BinaryIO]
# Which file this is, and that nobody wrote to it since: device, inode, size, and both of its times.
Identity = tuple[int, int, int, int, int]


@dataclass(slots=True)
class _Held:
    """One file of the shelf: its bytes, and when it was last asked for, in Unix seconds."""

    size: int
    used: float


class Shelf:
    """The folder of copies, while this process owns it. Call from one event loop; whatever blocks does so in threads.

    `pinned` tells the hashes that are in use, which are never removed. `clock` is in Unix seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_file_bytes: int,
        max_bytes: int,
        pinned: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the folder, or take what lies in it. Blocks. Raises ConfigError where that cannot be done."""
        self.folder = folder
        self.max_file_bytes, self.max_bytes = max_file_bytes, max_bytes
        self._pinned, self._clock = pinned, clock
        self._reserved = 0
        self._seen: OrderedDict[Identity, str] = OrderedDict()
        # One copy at a time: several would only share the disk.
        self._turn = asyncio.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._held = _scan(folder)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used for LoRAs: {error.strerror}", param="data_dir") from error

    @property
    def held_bytes(self) -> int:
        """The bytes of all files on the shelf."""
        return sum(held.size for held in self._held.values())

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._held

    def path(self, sha256: str) -> Path:
        """Where the copy lies. Raises UnknownAdapter for one that is not on the shelf, or not any more."""
        if sha256 not in self._held:
            raise UnknownAdapter(f"There is no LoRA {sha256[:12]} on the shelf any more: name its file again.")
        self._held[sha256].used = self._clock()
        return self._path(sha256)

    async def take(self, path: Path) -> str:
        """Have a copy of this file on the shelf; its sha256. See `take_opened`."""
        return await self.take_opened(partial(open_file, path))

    async def take_opened(self, opened: Open) -> str:
        """Have a copy of the file that `opened` opens on the shelf; its sha256. One that is known is not read again.

        Raises UnknownAdapter if it is not there, InvalidAdapter if it is no LoRA file or too large, and StorageFull.
        The message says only what is wrong with it, not with which.
        """
        if (sha256 := await self._known(opened)) is None:
            async with self._turn:
                # Whoever had the turn before may have brought the same.
                if (sha256 := await self._known(opened)) is None:
                    sha256 = await self._copied(opened)
        return sha256

    async def receive(self, size: int, fill: Callable[[Incoming], None]) -> str:
        """Have a file of this size on the shelf that `fill`, in a thread, writes; its sha256.

        Raises what `fill` raises, and as `take_opened` does. `fill` stops at its next write if nobody waits any more.
        """
        self.expect_size(size)
        with self._room(size):
            return await self._written(partial(self._receive, size, fill))

    def expect_size(self, size: int) -> None:
        """Raise InvalidAdapter if a file of this size may not be taken."""
        if size > self.max_file_bytes:
            raise InvalidAdapter(f"it has {size} bytes; at most {self.max_file_bytes} are taken (lora_max_bytes)")

    async def _known(self, opened: Open) -> str | None:
        identity = await asyncio.to_thread(_look, opened)
        sha256 = self._seen.get(identity)
        if sha256 is None or sha256 not in self._held:
            return None
        try:
            # So that its age is known to the next gateway, too.
            await asyncio.to_thread(os.utime, self._path(sha256), (self._clock(), self._clock()))
        except FileNotFoundError:
            log.warning("shelf_file_gone", sha256=sha256)
            self._held.pop(sha256, None)
            return None
        if sha256 in self._held:
            self._held[sha256].used = self._clock()
            self._seen.move_to_end(identity)
            return sha256
        return None

    async def _copied(self, opened: Open) -> str:
        size = await asyncio.to_thread(_header_size, opened)
        self.expect_size(size)
        began = self._clock()
        with self._room(size):
            found: list[Identity] = []
            sha256 = await self._written(partial(self._receive, size, partial(_copy, opened, found)))
        identity = found[0]
        if max(identity[3:]) / 1e9 < began - _RACY_SECONDS:
            self._seen[identity] = sha256
            while len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
        return sha256

    async def _written(self, work: Callable[[threading.Event], tuple[str, int]]) -> str:
        """Do this in a thread, which is told when nobody waits for it any more, and is waited for even then."""

        def done(written: tuple[str, int]) -> None:
            sha256, size = written
            self._held[sha256] = _Held(size, self._clock())

        return (await whole(work, done))[0]

    def _receive(self, size: int, fill: Callable[[Incoming], None], stop: threading.Event) -> tuple[str, int]:
        try:
            with Incoming(self.folder, size, stop) as incoming:
                fill(incoming)
                return incoming.finish(f"{{}}{SUFFIX}"), size
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull("The server's disk has no room for the LoRA.") from error
            raise InvalidAdapter(f"it cannot be read: {error.strerror}") from error

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Keep so many bytes free for this block; what was not used for the longest time goes first."""
        self._evict(self.held_bytes + self._reserved + size - self.max_bytes)
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    def _evict(self, excess: int) -> None:
        if excess <= 0:
            return
        pinned, now = set(self._pinned()), self._clock()
        free = [s for s, it in self._held.items() if s not in pinned and it.used < now - _GRACE_SECONDS]
        free.sort(key=lambda sha256: self._held[sha256].used)
        going: list[str] = []
        for sha256 in free:
            if excess <= 0:
                break
            excess -= self._held[sha256].size
            going.append(sha256)
        if excess > 0:
            raise StorageFull(
                f"The shelf of LoRAs is full with those in use ({self.max_bytes} bytes, lora_shelf_bytes)."
            )
        for sha256 in going:
            del self._held[sha256]
            log.info("shelf_evicted", sha256=sha256)
            # Freeing gigabytes takes a file system a while; a new name, none.
            gone = self._path(sha256).with_suffix(".gone")
            with suppress(FileNotFoundError):
                self._path(sha256).rename(gone)
                asyncio.get_running_loop().run_in_executor(None, partial(gone.unlink, missing_ok=True))

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{SUFFIX}"


def _look(opened: Open) -> Identity:
    with opened() as file:
        return _identity(file)


def _identity(file: BinaryIO) -> Identity:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _header_size(opened: Open) -> int:
    """The file's size, after a look at its header: what is no LoRA file is not worth copying."""
    with opened() as file:
        return read_header(file).size


def _copy(opened: Open, found: list[Identity], incoming: Incoming) -> None:
    """Copy the file, and tell in `found` which one it was."""
    with opened() as file:
        before = _identity(file)
        incoming.copy(file)
        if _identity(file) != before:
            raise InvalidAdapter("it changed while it was read: wait until it is written")
        found.append(before)


def _scan(folder: Path) -> dict[str, _Held]:
    """What lies on the shelf. What was never finished is removed; what has none of our names is left alone."""
    held = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if _LEFT_OVER.fullmatch(entry.name):
                Path(entry).unlink()
            elif match := _NAME.fullmatch(entry.name):
                status = entry.stat(follow_symlinks=False)
                held[match[1]] = _Held(status.st_size, status.st_mtime)
    return held
