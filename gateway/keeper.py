"""Keeps one slot's worker as it is wanted: running, drained or gone; restarts it with back-off, gives up in time."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.causes import Death
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
    """What is done about a slot right now."""

    RUNNING = "running"
    BACKING_OFF = "backing_off"
    QUARANTINED = "quarantined"
    DRAINING = "draining"
    DRAINED = "drained"
    STOPPED = "stopped"


@dataclass(slots=True)
class Facts:
    """What is known about a slot, for /readyz, the figures and the log; `cause` is why its process ends, or ended."""

    slot: Slot
    standing: Standing = Standing.STOPPED
    pid: int = 0
    cause: Death = "ended"
    restarts: Counter[Death] = field(default_factory=Counter)
    started_at: float = 0.0
    last_error: str = ""
    last_words: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ears:
    """What is told: before a start with its token, after an exit, when nobody of a name will come for a while, or ever.

    `exited` answers whether the worker had work in hand: then its death is counted there, and is no crash loop's.
    """

    expect: Callable[[str, str], None]
    exited: Callable[[str, str], bool]
    given_up: Callable[[str, str], None]
    dismissed: Callable[[str], None]


class Keeper:
    """Owns one process at a time. Every call comes from the loop's thread; `keep` is its life."""

    def __init__(self, slot: Slot, launcher: Launcher, policy: RestartPolicy, ears: Ears) -> None:
        self.facts = Facts(slot)
        self._launcher = launcher
        self._policy = policy
        self._ears = ears
        self._handle: Handle | None = None
        self._wanted = Standing.RUNNING
        self._asked = False
        self._changed = asyncio.Event()

    def kill(self, reason: Death | None = None) -> None:
        """End the process now, for this reason; what is done then is what is wanted."""
        if self._handle:
            self.facts.cause = reason or self.facts.cause
            self._handle.kill()

    def terminate(self) -> None:
        """Ask the process to finish and leave."""
        if self._handle:
            self._handle.terminate()

    async def ended(self, pid: int) -> None:
        """Return when this process has ended; at once where it is no process of this slot any more."""
        if self._handle and self._handle.pid == pid:
            await self._handle.wait()

    def want(self, standing: Standing) -> None:
        """Have it RUNNING, anew if it runs; DRAINED, until it is wanted again; or STOPPED, for good.

        This only says what is to follow the end of the process; to end it is the caller's affair.
        """
        self._wanted = standing
        self._asked = True
        self.facts.standing = Standing.DRAINING if self._handle and standing is not Standing.STOPPED else standing
        self._changed.set()

    async def keep(self) -> None:
        """Keep the worker as it is wanted, until it is wanted no more."""
        starts: deque[float] = deque(maxlen=self._policy.limit)
        failures, again = 0, False
        while self._wanted is not Standing.STOPPED:
            if self._wanted is Standing.DRAINED:
                self.facts.standing = Standing.DRAINED
                self._changed.clear()
                self._ears.given_up(self.facts.slot.name, f"{self.facts.slot.name} is drained")
                await self._rest(None)
                continue
            if self._asked:
                # As it was told: no failure, and no wait.
                starts.clear()
                failures = 0
                self.facts.cause = "requested"
            self._asked = False
            self._changed.clear()
            self.facts.standing = Standing.RUNNING
            if again:
                self.facts.restarts[self.facts.cause] += 1
            self.facts.cause, again = "ended", True
            began = time.monotonic()
            starts.append(began)
            reason, at_work = await self._live()
            if self._asked:
                continue
            if at_work:
                starts.pop()
            lived = time.monotonic() - began
            failures = 1 if at_work or lived > self._policy.window_seconds else failures + 1
            self.facts.last_error = reason
            name = self.facts.slot.name
            log.warning("worker_exit", worker=name, reason=reason, lived_seconds=round(lived, 1), failures=failures)
            if len(starts) == starts.maxlen and time.monotonic() - starts[0] < self._policy.window_seconds:
                await self._quarantine(reason)
                # Half open: one more start; if that fails soon, the window is still full.
                starts.extend([time.monotonic()] * (self._policy.limit - 1))
            else:
                self.facts.standing = Standing.BACKING_OFF
                await self._rest(self._delay(failures))

    async def _live(self) -> tuple[str, bool]:
        """One process from start to end; returns how it ended, and whether it had work in hand."""
        facts, token = self.facts, secrets.token_urlsafe(32)
        name = facts.slot.name
        self._ears.expect(name, token)
        try:
            handle = await self._launcher.launch(facts.slot, token)
        except OSError as error:
            facts.cause = "launch_failed"
            self._ears.exited(name, "launch_failed")
            return f"cannot be started: {error}", False
        self._handle = handle
        facts.pid, facts.started_at = handle.pid, time.time()
        if self._asked:
            # It was wanted otherwise while it was being started.
            handle.terminate()
        try:
            status = await handle.wait()
            facts.last_words = handle.last_words()
        finally:
            # Cancelled while it lives: it has had its time to leave.
            handle.kill()
            await asyncio.shield(handle.wait())
            self._handle = None
            facts.pid = 0
        reason = _death(status)
        if facts.cause not in ("ended", "requested"):
            # It was ended for a reason, which says more than how.
            reason = f"{facts.cause}, {reason}"
        return reason, self._ears.exited(name, reason)

    def _delay(self, failures: int) -> float:
        """The first restart is immediate: most deaths are not the worker's fault."""
        if failures == 1:
            return 0.0
        return min(_MAX_BACKOFF_SECONDS, self._policy.backoff_seconds * 2.0 ** (failures - 2))

    async def _rest(self, seconds: float | None) -> None:
        """Sleep, unless something else is wanted meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def _quarantine(self, reason: str) -> None:
        facts, seconds = self.facts, self._policy.retry_seconds
        name, words = facts.slot.name, " | ".join(facts.last_words[-5:])
        facts.standing = Standing.QUARANTINED
        log.error("worker_quarantined", worker=name, reason=reason, retry_seconds=seconds, last_words=words)
        self._ears.given_up(name, f"{name} is quarantined after {self._policy.limit} starts: {reason}")
        await self._rest(seconds)


def _death(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
