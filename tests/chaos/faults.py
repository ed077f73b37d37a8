"""What is done to the server: each kind of fault is one row of FAULTS, and which comes when is drawn from a seed alone.

A change of what the replicas have in common, such as a model's LoRAs, will be one more row here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Literal

import psutil
import zmq

from tests.chaos.wishes import draw

if TYPE_CHECKING:
    from tests.chaos.storm import Storm

# Faults come this often, on the average; what keeps one waiting is that there is nothing to harm yet.
EVERY_SECONDS = 0.65

# Whose life a fault is about: a run has all but "gateway", and those too if it is asked for them.
Room = Literal["workers", "administration", "gateway", "clients"]


@dataclass(frozen=True)
class Fault:
    """One fault: how long after the one before, and on whom, for how long, how many, as its kind needs it."""

    number: int
    gap: float
    kind: str
    worker: int
    seconds: float
    count: int
    dice_seed: int


@dataclass(frozen=True)
class Kind:
    """How often a kind comes beside the others, its bounds, and the deed. The deed raises NoSuchProcess in vain."""

    room: Room
    weight: int
    deed: Callable[[Storm, Fault], Awaitable[None]]
    seconds: tuple[float, float] = (0.0, 0.0)
    count: tuple[int, int] = (1, 1)


def plan(seed: int, *, gateway: bool = False) -> Iterator[Fault]:
    """The faults of this seed, without end; with `gateway`, those that end the gateway itself are among them."""
    kinds = {name: kind for name, kind in FAULTS.items() if gateway or kind.room != "gateway"}
    dice = Random(f"{seed}/faults")
    for number in count():
        name = dice.choices([*kinds], [kind.weight for kind in kinds.values()])[0]
        kind = kinds[name]
        yield Fault(
            number,
            min(3 * EVERY_SECONDS, dice.expovariate(1 / EVERY_SECONDS)),
            name,
            dice.randrange(1000),
            dice.uniform(*kind.seconds),
            dice.randint(*kind.count),
            dice.randrange(2**32),
        )


# Workers


async def _kill_worker(storm: Storm, fault: Fault) -> None:
    (await storm.target.worker(fault.worker)).kill()


async def _kill_all_workers(storm: Storm, fault: Fault) -> None:
    for worker in await storm.target.workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


async def _stop_worker(storm: Storm, fault: Fault) -> None:
    """For a moment, or for longer than the gateway is patient: then it is killed while it stands."""
    worker = await storm.target.worker(fault.worker)
    worker.suspend()

    async def wake() -> None:
        await asyncio.sleep(fault.seconds)
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()

    storm.aside(wake())


# Administration


async def _restart_worker(storm: Storm, fault: Fault) -> None:
    await storm.target.tell(await storm.target.name(fault.worker), "restart")


async def _drain_worker(storm: Storm, fault: Fault) -> None:
    """It is wanted again after a while."""
    name = await storm.target.name(fault.worker)
    await storm.target.tell(name, "drain")

    async def want_again() -> None:
        await asyncio.sleep(fault.seconds)
        await storm.target.tell(name, "restart")

    storm.aside(want_again())


async def _scale(storm: Storm, fault: Fault) -> None:
    await storm.target.scale(fault.count)


# The gateway


async def _kill_gateway(storm: Storm, fault: Fault) -> None:
    await storm.target.end(told_to_leave=False)
    await storm.target.begin()


async def _restart_gateway(storm: Storm, fault: Fault) -> None:
    await storm.target.end(told_to_leave=True)
    await storm.target.begin()


async def _freeze_gateway(storm: Storm, fault: Fault) -> None:
    await storm.target.freeze(fault.seconds)


async def _speak_nonsense(storm: Storm, fault: Fault) -> None:
    """Frames that are no message, from somebody who has found the workers' socket."""
    dice = Random(fault.dice_seed)
    [hub, *_] = storm.target.runtime.glob("replicast-*/hub")
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 200)
        peer.connect(f"ipc://{hub}")
        for _ in range(fault.count):
            with contextlib.suppress(zmq.Again):
                peer.send_multipart([dice.randbytes(dice.randrange(60)) for _ in range(3)], zmq.DONTWAIT)


# Clients


def _asks(kind: str, *, once: bool = False) -> Callable[[Storm, Fault], Awaitable[None]]:
    """So many clients at once with a wish of this kind each; `once`: who is refused does not come again."""

    async def deed(storm: Storm, fault: Fault) -> None:
        dice = Random(fault.dice_seed)
        for number in range(fault.count):
            wish = draw(dice, f"fault{fault.number}-{number}", kind)
            storm.aside(storm.once(wish) if once else storm.fulfil(wish))

    return deed


FAULTS = {
    "kill_worker": Kind("workers", 24, _kill_worker),
    "kill_all_workers": Kind("workers", 4, _kill_all_workers),
    "stop_worker": Kind("workers", 7, _stop_worker, seconds=(0.05, 0.5)),
    "stop_worker_for_good": Kind("workers", 4, _stop_worker, seconds=(2.5, 4.0)),
    "restart_worker": Kind("administration", 7, _restart_worker),
    "drain_worker": Kind("administration", 6, _drain_worker, seconds=(0.0, 3.0)),
    "scale": Kind("administration", 7, _scale, count=(2, 5)),
    "kill_gateway": Kind("gateway", 8, _kill_gateway),
    "restart_gateway": Kind("gateway", 3, _restart_gateway),
    "freeze_gateway": Kind("clients", 3, _freeze_gateway, seconds=(0.2, 1.5)),
    "nonsense": Kind("clients", 3, _speak_nonsense, count=(1, 20)),
    "flood": Kind("clients", 6, _asks("plain", once=True), count=(30, 50)),
    "leavers": Kind("clients", 10, _asks("leaver"), count=(2, 10)),
    # The stub's own: what it is asked breaks it.
    "poison": Kind("clients", 3, _asks("poison")),
    "garbage": Kind("clients", 3, _asks("garbage")),
    "crash_at_step": Kind("clients", 3, _asks("crash_at_step")),
    "oom": Kind("clients", 3, _asks("oom"), count=(1, 3)),
    "oom_at_step": Kind("clients", 3, _asks("oom_at_step"), count=(1, 3)),
    "failure": Kind("clients", 3, _asks("failure"), count=(1, 3)),
    "hang": Kind("clients", 1, _asks("hang")),
    "slow": Kind("clients", 6, _asks("slow"), count=(1, 3)),
}
