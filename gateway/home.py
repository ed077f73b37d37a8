"""The data folder: whose it is, its secret, how often a gateway has started on it, and the folder of its socket."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import ConfigError

_SECRET_BYTES = 32


class Home:
    """The data folder while this process owns it. Use as a context manager; a second owner is refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the folder. Raises ConfigError if another gateway has it, or it cannot be written."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"--data-dir {self.folder} cannot be used: {error.strerror}", param="data_dir") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise ConfigError(
                f"--data-dir {self.folder} is in use by a running gateway (process {owner}): "
                "stop it, or give another --data-dir",
                param="data_dir",
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # While it is still ours: after that it may be the next owner's.
        folder = self.socket_folder()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def next_term(self) -> int:
        """The number of this start: one more than the last, kept durably before it is used."""
        path = self.folder / "term"
        try:
            term = int(path.read_text()) + 1 if path.exists() else 1
        except ValueError as error:
            raise ConfigError(
                f"{path} does not hold a number: restore it, or remove it if nothing else is kept here"
            ) from error
        self._keep("term", str(term).encode())
        return term

    def secret(self) -> bytes:
        """The key of this folder's signatures, made once: what was signed with it holds after a restart."""
        path = self.folder / "secret"
        if not path.exists():
            self._keep("secret", secrets.token_bytes(_SECRET_BYTES))
        secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise ConfigError(f"{path} is not as it was written: restore it, or remove it, which ends all signed links")
        return secret

    def _keep(self, name: str, content: bytes) -> None:
        """Write a file of our own, for our own eyes, whole and durably or not at all."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=f"{name}.", delete=False) as new:
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
        Path(new.name).replace(self.folder / name)

    def socket_folder(self) -> Path:
        """Where the workers' socket lives, one per data folder: short, since its path is limited to 107 bytes."""
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        name = f"replicast-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"
        return Path(runtime) / name if runtime else Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
