"""A worker that does as a test says: no process, but the real socket and the real messages, in the test's own loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import zmq
import zmq.asyncio

from gateway.launchers import Handle, Slot
from shared import wire
from shared.cards import ModelCard
from shared.messages import (
    PROTOCOL,
    Ack,
    Cancel,
    Device,
    Done,
    Drain,
    Failed,
    Hello,
    ImageFacts,
    Message,
    Outcome,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Problem,
    Progress,
    Run,
    Timings,
    Tokens,
    Want,
    Wanted,
    Welcome,
)
from tests.pictures import hollow


@dataclass
class Script:
    """What the workers of one server do, and what they were told to."""

    cards: Mapping[str, ModelCard]
    # Instead of a picture: the problem of a run whose prompt is this.
    problems: dict[str, Problem] = field(default_factory=dict)
    # Cleared, every run waits: before its previews, or with `halfway` when they are shown.
    go: asyncio.Event = field(default_factory=asyncio.Event)
    halfway: bool = False
    # What a run of this prompt read and wrote: text, pictures given, picture made.
    tokens: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    # What these workers have against any LoRA state; those who say nothing at all; and whom to hear of new states late.
    refusals: dict[str, Problem] = field(default_factory=dict)
    mute: set[str] = field(default_factory=set)
    late: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Prepare] = field(default_factory=list)
    # The pictures to work from, by job.
    given: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    # Attempts, as (job, attempt): another attempt at the same job is none of them.
    cancelled: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.go.set()
        self.late.set()

    def launcher(self, endpoint: str) -> Launcher:
        return Launcher(self, endpoint)


@dataclass(frozen=True)
class Launcher:
    """Starts scripted workers that dial `endpoint`."""

    script: Script
    endpoint: str

    async def launch(self, slot: Slot, token: str) -> Handle:
        return Scripted(self, slot, token)


class Scripted:
    """One worker, as long as its task lives. A Handle."""

    def __init__(self, launcher: Launcher, slot: Slot, token: str) -> None:
        self.pid = os.getpid()
        self._script, self._endpoint = launcher.script, launcher.endpoint
        self._hello = Hello(
            protocol=PROTOCOL,
            name=slot.name,
            token=token,
            incarnation=f"{slot.name}-{token[:4]}",
            slots=1,
            pid=self.pid,
            host="test",
            device=Device(kind="stub", names=slot.devices),
        )
        self._session, self._seq = "", 0
        self._runs: set[asyncio.Task[None]] = set()
        self._life = asyncio.create_task(self._live(), name=slot.name)

    async def wait(self) -> int:
        await asyncio.wait([self._life])
        return 0

    def terminate(self) -> None:
        self._life.cancel()

    def kill(self) -> None:
        self._life.cancel()

    def last_words(self) -> list[str]:
        return []

    async def _live(self) -> None:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as self._socket:
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.connect(self._endpoint)
            try:
                await self._say(self._hello)
                while True:
                    await self._socket.poll()
                    self._take(wire.unpack(await self._socket.recv_multipart()))
                    await asyncio.sleep(0)
            finally:
                for run in self._runs:
                    run.cancel()
                await asyncio.gather(*self._runs, return_exceptions=True)

    async def _say(self, message: Message, *attachments: bytes) -> None:
        self._seq += 1
        stamp = wire.Stamp(0, self._hello.incarnation, self._session, self._seq)
        await self._socket.send_multipart(wire.pack(message, stamp, attachments))

    def _take(self, packet: wire.Packet) -> None:
        match message := packet.message:
            case Welcome():
                self._session = message.session
                self._answer(self._hold(message.wanted))
            case Want():
                self._answer(self._hold(message.wanted))
            case Prepare():
                self._script.asked.append(message)
                if self._hello.name not in self._script.mute:
                    problem = self._script.refusals.get(self._hello.name)
                    digest = message.loras.digest
                    self._answer(
                        self._say(Prepared(model=message.model, epoch=message.epoch, digest=digest, problem=problem))
                    )
            case Ping():
                self._answer(self._say(Pong(count=message.count, steps=0, memory_bytes=0)))
            case Run():
                self._script.runs.append(message)
                self._script.given[message.job] = tuple(bytes(data) for data in packet.attachments)
                self._answer(self._draw(message))
            case Cancel():
                self._script.cancelled.append((message.job, message.attempt))
            case Drain():
                pass
            case _:
                raise AssertionError(f"a worker is not told {message!r}")

    def _answer(self, work: asyncio.coroutines.Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def _hold(self, wanted: Wanted) -> None:
        outcomes = []
        await self._script.late.wait()
        for model in wanted.models:
            card = self._script.cards.get(model.id)
            problem = None if card else Problem(code="load_failed", message="there is no card of it")
            outcomes.append(Outcome(model=model.id, card=card, problem=problem, epoch=model.epoch, digest=model.digest))
        await self._say(Ack(version=wanted.version, outcomes=tuple(outcomes)))

    async def _draw(self, run: Run) -> None:
        wish = run.parameters
        picture = hollow(wish.output_format, wish.width, wish.height, b"." * 99)
        await self._say(Progress(job=run.job, attempt=run.attempt, step=0, total=wish.steps))
        if self._script.halfway:
            await self._show(run, picture)
        while not (self._script.go.is_set() or (run.job, run.attempt) in self._script.cancelled):
            await asyncio.sleep(0.005)
        if (run.job, run.attempt) in self._script.cancelled:
            problem: Problem | None = Problem(code="cancelled", message="cancelled")
        else:
            problem = self._script.problems.get(run.parameters.prompt)
        if not self._script.halfway:
            await self._show(run, picture)
        if problem:
            await self._say(Failed(job=run.job, attempt=run.attempt, problem=problem))
            return
        facts = tuple(
            ImageFacts(seed=seed, width=wish.width, height=wish.height, format=wish.output_format, bytes=len(picture))
            for seed in run.seeds
        )
        timings = Timings(wait_ms=1, inference_ms=2, encode_ms=3)
        text, image_in, image_out = self._script.tokens.get(wish.prompt, (0, 0, 0))
        tokens = Tokens(text=text, image_in=image_in, image_out=image_out)
        done = Done(job=run.job, attempt=run.attempt, images=facts, timings=timings, tokens=tokens)
        await self._say(done, *([picture] * len(facts)))

    async def _show(self, run: Run, picture: bytes) -> None:
        total = run.parameters.steps
        for preview in range(run.previews):
            progress = Progress(job=run.job, attempt=run.attempt, step=preview + 1, total=total, preview=preview)
            await self._say(progress, picture + b"%d" % preview)
