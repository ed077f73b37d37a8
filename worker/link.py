"""A worker's one socket: a DEALER that dials the gateway. The only worker file that imports zmq."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import zmq
import zmq.asyncio

from shared import logs, wire
from shared.errors import WireError
from shared.messages import Message

_BURST = 64
_RETRY_SECONDS = 0.005
_SETTINGS = {
    zmq.IMMEDIATE: 1,  # never queue for a gateway that is not there: it would answer to a session long gone
    zmq.LINGER: 0,
    zmq.SNDHWM: 64,
    zmq.RCVHWM: 64,
    zmq.MAXMSGSIZE: wire.MAX_FRAME_BYTES,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 5000,
}

log = logs.get("link")


class Link:
    """The connection to one gateway. All calls come from the loop's thread; `close` ends it for good."""

    def __init__(self, endpoint: str, incarnation: str) -> None:
        self._endpoint = endpoint
        self._incarnation = incarnation
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._seq = 0
        self.session = ""

    def open(self) -> None:
        """Dial anew, with a fresh socket: what waited in the old one belongs to a session that is over."""
        self._drop()
        self.session = ""
        # No routing id is ever set: a second peer with a known one would be ignored in silence.
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in _SETTINGS.items():
            self._socket.setsockopt(option, value)
        self._socket.connect(self._endpoint)

    async def send(self, message: Message, attachments: Sequence[wire.Buffer] = ()) -> bool:
        """Send, waiting while the gateway cannot take it; False if the link was opened anew meanwhile."""
        dialled = self._socket
        self._seq += 1
        frames = wire.pack(message, wire.Stamp(0, self._incarnation, self.session, self._seq), attachments)
        while dialled is not None and dialled is self._socket:
            try:
                await dialled.send_multipart(frames, zmq.DONTWAIT, copy=False)
            except zmq.Again:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return True
        return False

    async def receive(self, timeout_seconds: float) -> list[wire.Packet]:
        """What has arrived, at most 64 messages; empty after `timeout_seconds`. What is no message is dropped."""
        assert self._socket is not None
        # A receive that is cancelled loses its message, so the wait is a poll.
        if not await self._socket.poll(int(timeout_seconds * 1000)):
            return []
        packets = []
        for _ in range(_BURST):
            try:
                frames = await self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                packets.append(wire.unpack(frames))
            except WireError as error:
                log.warning("wire_error", problem=error.message)
        return packets

    def close(self) -> None:
        """Hang up and give the context back."""
        self._drop()
        self._context.term()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
