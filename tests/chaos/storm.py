"""One storm: a live server, clients that never stop asking, faults by a seed, and then the silence in which to look."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import numpy as np
import psutil

from tests.chaos import epochs, faults
from tests.chaos.changes import Changes
from tests.chaos.history import REFUSALS, SLACK_SECONDS, Entry, History, Violation
from tests.chaos.target import Failed, Target, within
from tests.chaos.wishes import TROUBLES, Wish, ask, models, wishes
from worker import images
from worker.backends import stub

REPLICAS = 3
CLIENTS = 12
MAX_QUEUE = 24
TIMEOUT_SECONDS = 60.0
SETTINGS: dict[str, object] = {
    "ping_seconds": 0.1,
    "suspect_after_pings": 5,
    "gone_after_pings": 20,
    "stuck_seconds": 1.0,
    # Random kills may hit the same picture again and again: with more attempts that convicts no innocent one.
    "max_attempts": 5,
    "max_queue": MAX_QUEUE,
    "request_timeout_seconds": TIMEOUT_SECONDS,
    "drain_seconds": 15,
    # Nobody is quarantined here: deaths are all there is.
    "restart_backoff_seconds": 0.05,
    "restart_limit": 100,
    "restart_window_seconds": 1.0,
    # A vote lasts as long as it takes to see that somebody is gone; what nobody can follow is taken back soon.
    "lora_prepare_seconds": 5,
    "lora_answer_seconds": 8,
    "lora_revert_seconds": 2,
    "log_format": "json",
}
_DRAWN_AGAIN = 10


@dataclass(frozen=True)
class Report:
    """What a storm brought."""

    seed: int
    seconds: float
    faults: Counter[str]
    requests: int
    outcomes: Counter[str]
    changes: Counter[str]
    epochs: int
    gateways: int
    workers: int
    gone_seconds: float
    violations: list[Violation]

    def __str__(self) -> str:
        wrong = Counter(violation.what for violation in self.violations)
        refused = sum(self.outcomes[code] for code in REFUSALS)
        lines = [
            f"{wrong['lost']} accepted requests lost, {wrong['hung']} hung, {wrong['twice']} answered twice, "
            f"{wrong['wrong']} answered with the wrong image, {wrong['unjustified']} with an unexplained error",
            f"in {self.faults.total()} random faults over {self.requests} accepted requests; "
            f"{refused} more were turned away; {len(self.violations)} violations in all",
            f"  seed {self.seed}, {self.seconds:.0f} s; {self.gateways} lives of the gateway, whose workers were gone "
            f"within {self.gone_seconds:.2f} s of its end; {self.workers} worker processes",
            f"  faults: {_listed(self.faults)}",
            f"  outcomes: {_listed(self.outcomes)}",
            f"  {self.changes.total()} changes of LoRAs, {self.epochs} epochs decided: {_listed(self.changes)}",
        ]
        return "\n".join([*lines, *(f"  ! {violation}" for violation in self.violations[:50])])


def replay(seed: int, seconds: float, *, gateway: bool = False) -> str:
    """The command that brings the same faults again, in the same order."""
    return f"make chaos SEED={seed} SECONDS={seconds:g}" + (' ARGS="--gateway"' if gateway else "")


class Storm:
    """Use `run`. What was said stays in `folder`; sockets are in `runtime`; `program` may stand in for the gateway."""

    def __init__(
        self,
        seed: int,
        seconds: float,
        folder: Path,
        runtime: Path,
        *,
        gateway: bool = False,
        program: Sequence[str] = ("gateway",),
    ) -> None:
        self._seed, self._seconds, self._gateway, self._folder = seed, seconds, gateway, folder
        self._history = History(timeout_seconds=TIMEOUT_SECONDS, max_queue=MAX_QUEUE)
        self._injected: list[tuple[float, faults.Fault]] = []
        self._aside: set[asyncio.Task[None]] = set()
        self._enough = asyncio.Event()
        self._stack = ExitStack()
        self.target = Target(
            *(folder, runtime, self._stack, self._history, models(loras=folder / "loras"), SETTINGS),
            replicas=REPLICAS,
            timeout_seconds=TIMEOUT_SECONDS,
            program=program,
        )
        self.loras = Changes(self.target, folder / "loras", timeout_seconds=TIMEOUT_SECONDS)

    async def run(self) -> Report:
        """Let it blow for its time, then look. What may not be is in the report; raises Failed if it cannot end."""
        began = time.monotonic()
        target, history = self.target, self._history
        with self._stack:
            try:
                await target.begin()
                await within(target.is_whole, "the server is whole")
                await self.loras.begin()
                at_rest = await target.size()
                clients = [asyncio.create_task(self._client(f"client{number}")) for number in range(CLIENTS)]
                try:
                    await self._blow(began + self._seconds)
                    self._enough.set()
                    await self._all_answered(clients)
                finally:
                    await _cancel([*clients, *self._aside])
                violations = await self._look(at_rest)
                await target.end(told_to_leave=True)
            finally:
                self.loras.close(self._folder / "data")
                self._keep()
        account = self.loras.account
        violations += [*history.violations(), *epochs.violations(account, history.entries)]
        return Report(
            seed=self._seed,
            seconds=time.monotonic() - began,
            faults=Counter(fault.kind for _, fault in self._injected),
            requests=history.accepted(),
            outcomes=history.figures(),
            changes=account.figures(),
            epochs=sum(row.committed for row in account.rows),
            gateways=len(history.lives),
            workers=sum(life.workers() for life in history.lives),
            gone_seconds=target.gone_seconds,
            violations=violations,
        )

    async def _blow(self, until: float) -> None:
        for fault in faults.plan(self._seed, gateway=self._gateway):
            await asyncio.sleep(fault.gap)
            if time.monotonic() > until:
                return
            try:
                await faults.FAULTS[fault.kind].deed(self, fault)
            except psutil.NoSuchProcess:
                continue  # somebody else was faster
            self._injected.append((time.time(), fault))

    def aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Let this go on beside the storm, which waits for it at its end and raises what it raises."""
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._done_aside)

    def _done_aside(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._aside.discard(task)

    # Clients

    async def _client(self, name: str) -> None:
        for wish in wishes(self._seed, name):
            if self._enough.is_set():
                return
            await self.fulfil(wish)

    async def fulfil(self, wish: Wish) -> None:
        """Ask until there is an answer that is one: who is turned away or loses the gateway comes again."""
        for attempt in count(1):
            entry = await self._try(wish, attempt)
            if entry.final:
                return
            await asyncio.sleep(0.2)

    async def once(self, wish: Wish) -> None:
        """Ask once."""
        await self._try(wish, 1)

    async def _try(self, wish: Wish, attempt: int) -> Entry:
        await self.target.up.wait()
        if wish.behind is not None:
            epoch = max(0, self.loras.account.known(wish.model) - wish.behind)
            wish = replace(wish, body=wish.body | {"lora_epoch": epoch})
        entry = Entry(wish, f"{wish.name}-{attempt}", self.target.life, time.time())
        self._history.entries.append(entry)
        try:
            async with asyncio.timeout(wish.patience):
                entry.answer = await ask(self.target.http, wish, entry.request_id)
        except TimeoutError:
            entry.left = True
        except httpx2.TransportError as error:
            entry.broken = f"{type(error).__name__} {error}"
        entry.ended = time.time()
        return entry

    async def _all_answered(self, clients: list[asyncio.Task[None]]) -> None:
        """Wait for everybody; who still waits after that is in the history as lost."""
        tasks = [*clients, *self._aside]
        done, _ = await asyncio.wait(tasks, timeout=TIMEOUT_SECONDS + 3 * SLACK_SECONDS)
        for task in done:
            task.result()

    # When it is over

    async def _look(self, at_rest: Counter[str]) -> list[Violation]:
        """What is not as it was before the storm."""
        target = self.target
        await target.scale(REPLICAS)
        await within(target.is_whole, "every replica is back")
        found = await self.loras.settle(REPLICAS)
        size: Counter[str] = Counter()

        async def as_before() -> bool:
            size.clear()
            size.update(await target.size())
            return all(size[what] <= at_rest[what] for what in size)

        for true, words in ((target.is_quiet, "it has work in hand"), (as_before, "it holds more than before")):
            try:
                await within(true, words, SLACK_SECONDS)
            except Failed as failed:
                found.append(Violation("left behind", "gateway", f"{failed}: {dict(at_rest)} before, {dict(size)} now"))
        return [*found, *await self._count(), *await self._draw_again()]

    async def _count(self) -> list[Violation]:
        """The last gateway's own count of pictures is what its clients have, give or take those who were not there."""
        mine = [entry for entry in self._history.entries if entry.life is self.target.life]
        have = sum(len(entry.answer.pictures) for entry in mine if entry.answer)
        perhaps = sum(len(entry.wish.expected) for entry in mine if entry.outcome != "200")
        said = await self.target.metric("replicast_images_total")
        if have <= said <= have + perhaps:
            return []
        return [Violation("twice", "gateway", f"{said} pictures made, {have} received, {perhaps} perhaps")]

    async def _draw_again(self) -> list[Violation]:
        """What was drawn in the storm is what is drawn in peace, on whatever replica, to the bit."""
        drawn = [e for e in self._history.entries if e.outcome == "200" and e.wish.kind not in (*TROUBLES, "leaky")]
        found = []
        for entry in Random(self._seed).sample(drawn, min(_DRAWN_AGAIN, len(drawn))):
            wish = replace(entry.wish, body={k: v for k, v in entry.wish.body.items() if k != "lora_epoch"})
            again = await ask(self.target.http, wish, f"{entry.request_id}-again")
            shown = entry.answer.pictures if entry.answer else []
            if len(shown) != len(again.pictures) or not all(map(_alike, shown, again.pictures)):
                words = f"another picture in peace: {again.code or again.problems}"
                found.append(Violation("wrong", entry.request_id, words))
        return found

    def _keep(self) -> None:
        """Write down what was done and what came of it, for whoever looks for the reason."""
        with (self._folder / "history.jsonl").open("w") as out:
            for at, fault in self._injected:
                out.write(json.dumps({"at": at, "fault": fault.kind, **vars(fault)}) + "\n")
            for entry in self._history.entries:
                told = {"at": entry.sent, "ended": entry.ended, "outcome": entry.outcome, "life": entry.life.number}
                out.write(json.dumps({**told, "request": entry.request_id, "kind": entry.wish.kind}) + "\n")
            for command in self.loras.account.commands:
                told = {"at": command.sent, "ended": command.ended, "outcome": command.outcome}
                told |= {"life": command.life.number, "epoch": command.told.get("epoch")}
                out.write(json.dumps({**told, "change": str(command.order), "body": command.order.body}) + "\n")


def _alike(one: bytes, other: bytes) -> bool:
    """Whether both are what the stub draws, of the same but for LoRAs that were changed in between."""
    facts = stub.read_back(one), stub.read_back(other)
    if facts[0] == facts[1]:
        return one == other
    for made, picture in zip(facts, (one, other), strict=True):
        size = images.Size(width=made["width"], height=made["height"])
        if not np.array_equal(images.decode(picture), stub._drawn(made, size, transparent=False)):
            return False
        for name in ("epoch", "digest", *(["loras"] if not made["loras"]["overlay"] else [])):
            del made[name]
    return facts[0] == facts[1]


def _listed(figures: Counter[str]) -> str:
    return ", ".join(f"{name} {times}" for name, times in figures.most_common())


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
