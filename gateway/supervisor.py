"""Keeps the declared workers alive: starts them, restarts them with back-off, gives up on one that cannot live."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.launchers import Handle, Launcher, Slot
from shared import logs

_MAX_BACKOFF_SECONDS = 60.0

log = logs.get("supervisor")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often to try again: `limit` starts within `window_seconds` is a crash loop, retried after `retry_seconds`."""

    backoff_seconds: float = 1.0
    limit: int = 5
    window_seconds: float = 60.0
    retry_seconds: float = 300.0


class Standing(StrEnum):
    """What the supervisor does about a slot right now."""

    RUNNING = "running"
    BACKING_OFF = "backing_off"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


@dataclass(slots=True)
class Facts:
    """What is known about a slot, for /readyz and the log."""

    slot: Slot
    standing: Standing = Standing.STOPPED
    pid: int = 0
    restarts: int = 0
    last_error: str = ""
    last_words: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ears:
    """What the supervisor calls: before a start with its token, after an exit, and when it stops trying for a while.

    `exited` answers whether the worker had work in hand: then its death is counted there, and is no crash loop's.
    """

    expect: Callable[[str, str], None]
    exited: Callable[[str, str], bool]
    given_up: Callable[[str, str], None]


class Supervisor:
    """Owns one process per slot. Every call comes from the loop's thread."""

    def __init__(self, launcher: Launcher, slots: Iterable[Slot], policy: RestartPolicy, ears: Ears) -> None:
        self.facts = {slot.name: Facts(slot) for slot in slots}
        self._launcher = launcher
        self._policy = policy
        self._ears = ears
        self._handles: dict[str, Handle] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving = asyncio.Event()

    def start(self) -> None:
        """Start every worker."""
        self._tasks = [
            asyncio.create_task(self._keep(facts), name=f"keep-{name}") for name, facts in self.facts.items()
        ]

    def kill(self, name: str) -> None:
        """End this worker's process now; it is started again as after any death."""
        if handle := self._handles.get(name):
            handle.kill()

    def hurry(self) -> None:
        """End every worker now, for good; `stop` reaps them."""
        self._leaving.set()
        for handle in self._handles.values():
            handle.kill()

    async def stop(self, grace_seconds: float) -> None:
        """Ask every worker to leave, wait, kill what is left, reap all."""
        self._leaving.set()
        for facts in self.facts.values():
            facts.standing = Standing.STOPPED
        for handle in self._handles.values():
            handle.terminate()
        if self._handles and self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, facts: Facts) -> None:
        """Keep one slot's worker alive until told to stop."""
        starts: deque[float] = deque(maxlen=self._policy.limit)
        failures = 0
        facts.standing = Standing.RUNNING
        while True:
            began = time.monotonic()
            starts.append(began)
            reason, at_work = await self._live(facts)
            if at_work:
                starts.pop()
            if self._leaving.is_set():
                return
            lived = time.monotonic() - began
            failures = 1 if at_work or lived > self._policy.window_seconds else failures + 1
            facts.last_error = reason
            log.warning(
                "worker_exit", worker=facts.slot.name, reason=reason, lived_seconds=round(lived, 1), failures=failures
            )
            if len(starts) == starts.maxlen and time.monotonic() - starts[0] < self._policy.window_seconds:
                await self._quarantine(facts, reason)
                # Half open: one more start; if that fails soon, the window is still full.
                starts.extend([time.monotonic()] * (self._policy.limit - 1))
            else:
                facts.standing = Standing.BACKING_OFF
                # The first restart is immediate: most deaths are not the worker's fault.
                delay = (
                    0.0
                    if failures == 1
                    else min(_MAX_BACKOFF_SECONDS, self._policy.backoff_seconds * 2 ** (failures - 2))
                )
                await self._rest(delay)
            if self._leaving.is_set():
                return
            facts.restarts += 1
            facts.standing = Standing.RUNNING

    async def _live(self, facts: Facts) -> tuple[str, bool]:
        """One process from start to end; returns how it ended, and whether it had work in hand."""
        name, token = facts.slot.name, secrets.token_urlsafe(32)
        self._ears.expect(name, token)
        try:
            handle = await self._launcher.launch(facts.slot, token)
        except OSError as error:
            self._ears.exited(name, "launch_failed")
            return f"cannot be started: {error}", False
        self._handles[name] = handle
        facts.pid = handle.pid
        try:
            status = await handle.wait()
            facts.last_words = handle.last_words()
        finally:
            # Cancelled while it lives: it has had its time to leave.
            handle.kill()
            await asyncio.shield(handle.wait())
            self._handles.pop(name, None)
            facts.pid = 0
        reason = _death(status)
        return reason, self._ears.exited(name, reason)

    async def _rest(self, seconds: float) -> None:
        """Sleep, unless it is time to leave."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()

    async def _quarantine(self, facts: Facts, reason: str) -> None:
        facts.standing = Standing.QUARANTINED
        log.error(
            "worker_quarantined",
            worker=facts.slot.name,
            reason=reason,
            retry_seconds=self._policy.retry_seconds,
            last_words=" | ".join(facts.last_words[-5:]),
        )
        self._ears.given_up(
            facts.slot.name, f"{facts.slot.name} is quarantined after {self._policy.limit} starts: {reason}"
        )
        await self._rest(self._policy.retry_seconds)


def _death(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
