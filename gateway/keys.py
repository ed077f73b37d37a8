"""The API keys of one data folder: what each may do, and the file that keeps them, with no secret in it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import BadInput, ConfigError

PREFIX = "rc_"
_MAX_NAME = 64


class Role(StrEnum):
    """What a key is for."""

    INFERENCE = "inference"
    ADMIN = "admin"
    WORKER = "worker"
    METRICS = "metrics"


_ALSO = {Role.ADMIN: (Role.INFERENCE, Role.METRICS)}


def may(role: Role, need: Role) -> bool:
    """Whether a key of this role may use a route that needs that one."""
    return role is need or need in _ALSO.get(role, ())


class Key(BaseModel):
    """One key. `sha256` is that of its secret, in hex; `created` is in Unix seconds; a bound that is None is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: int
    max_requests: int | None = Field(None, ge=1)
    images_per_minute: int | None = Field(None, ge=1)


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...]


class KeyFile:
    """`keys.json` of a data folder, always replaced whole: a reader sees the keys before a change, or those after it.

    Its own lock orders the changes, since the folder's belongs to the gateway that runs on it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self.path = self._folder / "keys.json"

    def read(self) -> tuple[Key, ...]:
        """The keys, oldest first; none where none was ever made. Raises ConfigError if they cannot be read."""
        try:
            return _Content.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            # Without its details: they quote the file.
            raise ConfigError(f"{self.path} does not hold keys: restore it, or remove it and make new ones") from error

    def create(
        self, role: Role, name: str = "", *, max_requests: int | None = None, images_per_minute: int | None = None
    ) -> tuple[Key, str]:
        """A new key and its secret, which is kept nowhere. When this returns, a running gateway takes it."""
        if len(name) > _MAX_NAME or not name.isprintable():
            raise BadInput(f"--name: expected at most {_MAX_NAME} printable characters", param="name")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=f"key_{secrets.token_hex(6)}",
            name=name,
            role=role,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            created=int(time.time()),
            max_requests=max_requests,
            images_per_minute=images_per_minute,
        )
        with self._changing():
            self._replace((*self.read(), key))
        return key, secret

    def revoke(self, key_id: str) -> tuple[Key, ...]:
        """Take this key away; those that are left. Raises BadInput if there is none of this id."""
        with self._changing():
            keys = self.read()
            left = tuple(key for key in keys if key.id != key_id)
            if len(left) == len(keys):
                raise BadInput(f"there is no key {key_id!r}", param="id")
            self._replace(left)
        return left

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / "keys.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._own(lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be changed: {error.strerror}") from error

    def _replace(self, keys: tuple[Key, ...]) -> None:
        content = _Content(keys=keys).model_dump_json(indent=1).encode()
        # Made with mode 0600.
        number, name = tempfile.mkstemp(dir=self._folder, prefix="keys.", suffix=".new")
        try:
            with open(number, "wb") as new:
                self._own(number)
                new.write(content)
                new.flush()
                os.fsync(number)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _own(self, number: int) -> None:
        """What root makes here belongs to the folder's owner: else the gateway could not read it."""
        if os.geteuid() == 0:
            owner = self._folder.stat()
            os.fchown(number, owner.st_uid, owner.st_gid)
