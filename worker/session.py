"""One worker's life: hello, reconcile to the wanted state, serve, bye.

The session is told everything by the gateway. It hands the wanted state and runs to the engine, answers pings at once
whatever the engine does, and says goodbye. If the gateway falls silent it hangs up and introduces itself anew.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from collections.abc import Sequence

from shared import logs
from shared.messages import (
    PROTOCOL,
    Bye,
    Cancel,
    Device,
    Done,
    Drain,
    Failed,
    Hello,
    InHand,
    Message,
    Ping,
    Pong,
    Prepare,
    Reject,
    Run,
    Want,
    Welcome,
)
from shared.wire import Packet
from worker.engine import Engine
from worker.link import Link

# sysexits: the gateway is not there, or will not have us.
EXIT_NO_GATEWAY = 75
EXIT_REJECTED = 77
_WELCOME_SECONDS = 2.0
_PATIENCE_SECONDS = 30.0
_SILENT_PINGS = 10
_SLOTS = 1

log = logs.get("session")


class Session:
    """`run` lives until the gateway says Drain or Bye, rejects us, or cannot be found, and returns the exit status."""

    def __init__(self, endpoint: str, name: str, token: str, device: Device) -> None:
        self._name = name
        self._token = token
        self._device = device
        self._incarnation = secrets.token_hex(8)
        self._link = Link(endpoint, self._incarnation)
        self._engine = Engine(device, self._speak, encode_threads=max(1, min(4, device.threads)))
        self._in_hand: dict[str, int] = {}
        self._ping_seconds = 1.0
        self._draining = False
        self._over: int | None = None

    async def run(self) -> int:
        """Serve until told otherwise."""
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[tuple[Message, Sequence[bytes]]] = asyncio.Queue()
        sender = asyncio.create_task(self._send_all())
        sender.add_done_callback(_must_not_end)
        self._welcomed = asyncio.Event()
        self._engine.start()
        try:
            while self._over is None:
                if not await self._introduce():
                    return EXIT_NO_GATEWAY
                await self._serve()
            return self._over
        finally:
            sender.remove_done_callback(_must_not_end)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            # Loading a model cannot be interrupted; the process ends all the same, and the system takes it back.
            if not await asyncio.to_thread(self._engine.stop, 5.0):
                log.warning("engine_abandoned")
            self._link.close()

    def drain(self, reason: str, *, told: bool = False) -> None:
        """Finish what is in hand, take nothing more, say Bye; the gateway is told first, unless it `told` us."""
        if not self._draining:
            log.info("draining", reason=reason, in_hand=len(self._in_hand))
            self._draining = True
            if not told:
                self._outbox.put_nowait((Drain(reason=reason), ()))

    async def _introduce(self) -> bool:
        """Dial and say Hello until there is a Welcome or a Reject; False when nobody answers for too long."""
        deadline = self._loop.time() + _PATIENCE_SECONDS
        while self._loop.time() < deadline and self._over is None:
            self._welcomed.clear()
            self._link.open()
            hello = Hello(
                protocol=PROTOCOL,
                name=self._name,
                token=self._token,
                incarnation=self._incarnation,
                slots=_SLOTS,
                pid=os.getpid(),
                host=socket.gethostname(),
                device=self._device,
                resident=self._engine.resident(),
                running=tuple(InHand(job=job, attempt=attempt) for job, attempt in self._in_hand.items()),
            )
            try:
                async with asyncio.timeout(_WELCOME_SECONDS):
                    await self._link.send(hello)
            except TimeoutError:
                continue
            for packet in await self._link.receive(_WELCOME_SECONDS):
                self._take(packet)
            if self._link.session or self._over is not None:
                return True
            await asyncio.sleep(random.uniform(0.05, 0.5))
        return False

    async def _serve(self) -> None:
        """Take messages until the session is over or the gateway has been silent for ten pings."""
        silent = 0
        while self._over is None and silent < _SILENT_PINGS:
            packets = await self._link.receive(self._ping_seconds)
            # Counted, not timed: while this process itself was held up, nobody was silent.
            silent = 0 if packets else silent + 1
            for packet in packets:
                self._take(packet)
            if self._draining and not self._in_hand:
                self._outbox.put_nowait((Bye(reason="drained"), ()))
                await self._outbox.join()
                self._over = 0
            await asyncio.sleep(0)
        if self._over is None:
            log.warning("gateway_silent", pings=silent)

    def _take(self, packet: Packet) -> None:
        message = packet.message
        match message:
            case Welcome():
                self._link.session = message.session
                self._welcomed.set()
                self._ping_seconds = message.ping_seconds
                self._engine.apply(message.wanted)
            case Reject():
                log.error("rejected", code=message.code, problem=message.message)
                self._over = EXIT_REJECTED
            case _ if packet.stamp.session != self._link.session:
                log.warning("stale_message", type=type(message).__name__)
            case Ping():
                pong = Pong(count=message.count, steps=self._engine.steps, memory_bytes=self._engine.memory_bytes())
                self._outbox.put_nowait((pong, ()))
            case Run():
                self._in_hand[message.job] = message.attempt
                self._engine.run(message, packet.attachments)
            case Cancel():
                self._engine.cancel(message.job, message.attempt)
            case Want():
                self._engine.apply(message.wanted)
            case Prepare():
                self._engine.prepare(message)
            case Drain():
                self.drain(message.reason, told=True)
            case Bye():
                log.info("dismissed", reason=message.reason)
                self._over = 0
            case _:
                log.warning("unexpected_message", type=type(message).__name__)

    def _speak(self, message: Message, attachments: Sequence[bytes]) -> None:
        """The engine's voice, from its own threads."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, (message, attachments))

    async def _send_all(self) -> None:
        """Say everything in its order. Without a session it waits: what was done meanwhile is told in the next one."""
        while True:
            message, attachments = await self._outbox.get()
            sent = False
            while not sent:
                await self._welcomed.wait()
                sent = await self._link.send(message, attachments)
            if isinstance(message, Done | Failed):
                self._in_hand.pop(message.job, None)
            self._outbox.task_done()


def _must_not_end(sender: asyncio.Task[None]) -> None:
    """A worker that can say nothing any more is of no use, and would not be missed while it still listens."""
    log.critical("sender_died", exc_info=sender.exception())
    os._exit(os.EX_SOFTWARE)
