"""The gateway's one socket: a ROUTER that its workers dial. The only gateway file that imports zmq.

The hub moves packets and knows nothing of what they mean: whoever owns it hands in what shall happen with a packet,
with garbage, and with a peer that cannot be reached.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio

from shared import logs, wire
from shared.errors import ConfigError, WireError
from shared.messages import Message
from shared.wire import Buffer, Packet, Stamp

_BURST = 64
_SETTINGS = {
    zmq.ROUTER_MANDATORY: 1,  # without it a message to nobody vanishes in silence
    zmq.LINGER: 0,
    zmq.SNDHWM: 64,
    zmq.RCVHWM: 64,
    zmq.MAXMSGSIZE: wire.MAX_FRAME_BYTES,
    zmq.HANDSHAKE_IVL: 1000,
    zmq.BACKLOG: 512,
    zmq.IPV6: 0,
}

log = logs.get("hub")


@dataclass(frozen=True, slots=True)
class Ears:
    """What the hub calls: with a packet, with frames that are none, with a peer that a message could not reach."""

    received: Callable[[bytes, Packet], None]
    garbage: Callable[[bytes, str], None]
    undeliverable: Callable[[bytes, str], None]


class Hub:
    """Opened on one `ipc://` path inside a private folder; every call comes from the loop's thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hub"
        if len(str(self._path).encode()) >= zmq.IPC_PATH_MAX_LEN:
            raise ConfigError(
                f"the socket path {self._path} is longer than {zmq.IPC_PATH_MAX_LEN} bytes: set XDG_RUNTIME_DIR"
            )
        self.endpoint = f"ipc://{self._path}"
        self._closing = False

    def open(self) -> None:
        """Bind. The caller holds the lock that makes this path ours: a second bind would make the first one deaf."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _private(self._path.parent)
        self._path.unlink(missing_ok=True)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in _SETTINGS.items():
            self._socket.setsockopt(option, value)
        # The mode of a socket file is fixed at bind.
        before = os.umask(0o077)
        try:
            self._socket.bind(self.endpoint)
        finally:
            os.umask(before)

    async def listen(self, ears: Ears) -> None:
        """Hand every packet to `ears` until `close`."""
        while not self._closing:
            # A receive that is cancelled loses its message, so the wait is a poll. The one reader always runs: only a
            # receive makes libzmq notice that a full pipe belongs to a peer that is gone.
            if not await self._socket.poll(1000):
                continue
            for _ in range(_BURST):
                if not await self._take_one(ears):
                    break
            # A receive that is ready does not yield; without this a flood starves the loop.
            await asyncio.sleep(0)

    async def _take_one(self, ears: Ears) -> bool:
        if self._closing:
            return False
        try:
            peer, *frames = await self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        try:
            packet = wire.unpack([frame.buffer for frame in frames])
        except WireError as error:
            ears.garbage(peer.bytes, error.message)
        else:
            ears.received(peer.bytes, packet)
        return True

    def send(self, peer: bytes, message: Message, stamp: Stamp, attachments: tuple[Buffer, ...] = ()) -> str | None:
        """Send without waiting; None, or why not: the peer is "unreachable" or "stuck", the message "unpackable"."""
        try:
            frames = wire.pack(message, stamp, attachments)
        except WireError as error:
            log.error("unpackable", type=type(message).__name__, problem=error.message)
            return "unpackable"
        sent = self._socket.send_multipart([peer, *frames], zmq.DONTWAIT, copy=False)
        # With DONTWAIT the future is done when the call returns.
        assert isinstance(sent, asyncio.Future)
        problem = sent.exception()
        if isinstance(problem, zmq.Again):
            return "stuck"
        if isinstance(problem, zmq.ZMQError) and problem.errno == zmq.EHOSTUNREACH:
            return "unreachable"
        if problem is not None:
            raise problem
        return None

    def close(self) -> None:
        """Hang up on everybody and remove the socket file."""
        self._closing = True
        self._socket.close(linger=0)
        self._context.term()
        self._path.unlink(missing_ok=True)


def _private(folder: Path) -> None:
    """Refuse a folder that another user could have made, or can look into."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{folder} is not a folder of this user")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
