"""A file on its way to the shelf: hashed while it is written, checked, and given its name whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from shared.errors import Cancelled, InvalidAdapter
from shared.safetensors import read_header

_CHUNK_BYTES = 4 << 20


class Incoming:
    """A new file of `size` bytes in `folder`. A context manager, of one thread: without `finish` it leaves no trace."""

    def __init__(self, folder: Path, size: int, stop: threading.Event) -> None:
        self._folder, self._left, self._stop = folder, size, stop
        self._part = folder / f"{secrets.token_hex(16)}.part"
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._part, flags, 0o600), "w+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Add these bytes. Raises InvalidAdapter for more than were announced, Cancelled if nobody waits for them."""
        if self._stop.is_set():
            raise Cancelled("Nobody waits for this LoRA any more.")
        self._left -= len(piece)
        if self._left < 0:
            raise InvalidAdapter("it grew while it was read")
        self._digest.update(piece)
        self._file.write(piece)

    def copy(self, file: BinaryIO) -> None:
        """Add all that is left of a file. Raises as `write` does."""
        while piece := file.read(_CHUNK_BYTES):
            self.write(piece)

    def finish(self, name: str) -> str:
        """Give it its name, in which {} stands for its sha256, durably; returns that hash.

        Raises InvalidAdapter for one that came short, or is not what it has to be.
        """
        if self._left:
            raise InvalidAdapter("it is cut off")
        self._file.flush()
        # Of these bytes, which nobody changes any more.
        read_header(self._file)
        os.fsync(self._file.fileno())
        sha256 = self._digest.hexdigest()
        self._part.rename(self._folder / name.format(sha256))
        sync_folder(self._folder)
        return sha256


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, as they are now."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
