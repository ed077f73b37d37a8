"""From what a client calls a LoRA to a copy of its file on the shelf: by catalogue, folder, S3 or hub, if allowed."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from gateway.loras import places
from gateway.loras.catalogue import Catalogue
from gateway.loras.incoming import Incoming
from gateway.loras.shelf import Shelf
from gateway.store.epochs import Nickname
from shared.errors import (
    BadInput,
    ConfigError,
    InvalidAdapter,
    SourceUnavailable,
    StorageFull,
    UnknownAdapter,
)
from shared.safetensors import said
from shared.store.hub import Hub, HubFile
from shared.store.s3 import S3

_MOST_LETTERS = 2048
_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,62})/(?P<key>[^\x00-\x1f\x7f]{1,1024})")
_HUB = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(:(?P<file>[\w./+ -]{1,500}))?", re.ASCII)
# Threads that a store which does not answer may hold up, of those that everybody shares.
_AT_ONCE = 2
_MOST_SEEN = 4096


class Finder:
    """Finds what clients name. Call from one event loop.

    `root` is the folder whose files may be named; `s3_prefixes` are `bucket` or `bucket/prefix`; `repositories` of the
    hub are `owner`, `owner/name` or `*`. Without them those ways are closed.
    """

    def __init__(
        self,
        shelf: Shelf,
        catalogue: Catalogue,
        *,
        root: Path | None = None,
        s3_prefixes: tuple[str, ...] = (),
        s3_endpoint: str | None = None,
        repositories: tuple[str, ...] = (),
        hub_endpoint: str | None = None,
    ) -> None:
        """Raises ConfigError if `root` is no folder, or a way is open and what it takes is not installed."""
        if root is not None and not root.is_dir():
            raise ConfigError(f"--lora-root {root} is no folder", param="lora_root")
        self._shelf, self._catalogue, self._root = shelf, catalogue, root
        self._prefixes = tuple(prefix.removeprefix("s3://").rstrip("/") for prefix in s3_prefixes)
        self._repositories = repositories
        self._s3 = S3(s3_endpoint) if s3_prefixes else None
        self._hub = Hub(hub_endpoint) if repositories else None
        self._seen: OrderedDict[Hashable, str] = OrderedDict()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, text: str, param: str) -> Nickname:
        """The file that a client means by `text`, said in the field `param`, of which the shelf has a copy now.

        Raises BadInput, UnknownAdapter, InvalidAdapter, StorageFull and SourceUnavailable.
        """
        if not 0 < len(text) <= _MOST_LETTERS:
            raise BadInput(f"Invalid '{param}': expected 1 to {_MOST_LETTERS} characters.", param=param)
        with named(text, param):
            return Nickname(await self._sha256(text), text)

    async def _sha256(self, text: str) -> str:
        if record := self._catalogue.find(text):
            return await self._shelf.take(self._catalogue.path(record))
        if text.startswith("s3://"):
            return await self._from_s3(text)
        if self._root is not None:
            try:
                return await self._shelf.take_opened(partial(places.open_below, self._root, text))
            except UnknownAdapter:
                if not (self._hub and _HUB.fullmatch(text)):
                    raise
        return await self._from_hub(text)

    async def _from_s3(self, text: str) -> str:
        match, s3 = _S3.fullmatch(text), self._s3
        if s3 is None:
            raise UnknownAdapter("nothing is fetched from S3 here (lora_s3)")
        if not match or not self._is_allowed(f"{match['bucket']}/{match['key']}") or not text.endswith(places.SUFFIX):
            raise UnknownAdapter(f"it is no {places.SUFFIX} in a place of S3 that may be named (lora_s3)")

        def look() -> _Far:
            found = s3.look(match["bucket"], match["key"])
            return _Far(found, found.size, "", lambda: s3.read(found))

        return await self._fetched(text, look)

    def _is_allowed(self, place: str) -> bool:
        return any(place.startswith(f"{prefix}/") for prefix in self._prefixes)

    async def _from_hub(self, text: str) -> str:
        match, hub = _HUB.fullmatch(text), self._hub
        if hub is None or match is None:
            if self._root is None:
                raise UnknownAdapter("it is not in the catalogue, and no folder of files may be named (lora_root)")
            raise places.unknown()
        repository, name = match["repository"], match["file"]
        if not {"*", repository, repository.partition("/")[0]} & {*self._repositories}:
            raise UnknownAdapter("it is no repository of the hub that may be named (hub)")

        def look() -> _Far:
            found = _chosen(hub.files(repository), name)
            return _Far(found, found.size, found.sha256, lambda: hub.read(found))

        return await self._fetched(text, look)

    async def _fetched(self, text: str, look: Callable[[], _Far]) -> str:
        """What is far away: looked at each time, and fetched if this version of it is not here."""
        turn = self._turns.setdefault(text, asyncio.Lock())
        async with turn, self._slots:
            with _missing():
                far = await asyncio.to_thread(look)
            sha256 = self._seen.get(far.version, far.sha256)
            if sha256 not in self._shelf:
                sha256 = await self._shelf.receive(far.size, far.fill)
            if far.sha256 and sha256 != far.sha256:
                raise SourceUnavailable("What came is not what was announced.", retry_after_seconds=10)
            self._shelf.path(sha256)
            self._seen[far.version] = sha256
            while len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
            return sha256


@dataclass(frozen=True, slots=True)
class _Far:
    """One version of a file elsewhere: its size in bytes, its sha256 if that is known, and a way to its bytes."""

    version: Hashable
    size: int
    sha256: str
    read: Callable[[], Iterator[bytes]]

    def fill(self, incoming: Incoming) -> None:
        with _missing():
            for piece in self.read():
                incoming.write(piece)


@contextmanager
def _missing() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise UnknownAdapter("it is not there, or may not be read") from error


@contextmanager
def named(text: str, param: str) -> Iterator[None]:
    """Errors that say only what is wrong: say with which, and which field named it."""
    try:
        yield
    except (UnknownAdapter, InvalidAdapter, StorageFull, SourceUnavailable) as error:
        message = (
            f"The LoRA '{said(text)}' cannot be taken. {error.message[:1].upper()}{error.message[1:].rstrip('.')}."
        )
        raise type(error)(message, param=param, retry_after_seconds=error.retry_after_seconds) from error


def _chosen(files: list[HubFile], name: str | None) -> HubFile:
    """The file of a repository that is meant. Raises UnknownAdapter where that is not clear."""
    found = [file for file in files if file.name.endswith(places.SUFFIX)]
    if name is not None:
        found = [file for file in found if file.name == name]
    elif usual := [file for file in found if file.name == places.USUAL]:
        found = usual
    if len(found) != 1:
        raise UnknownAdapter(f"the repository has {len(found)} such {places.SUFFIX} files: name one, owner/name:file")
    return found[0]
