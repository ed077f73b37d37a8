"""What is done to the server: each kind of fault is a row of FAULTS; which one comes when is drawn from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Literal

import psutil
import zmq

from tests.chaos import adapters, orders
from tests.chaos.wishes import draw

if TYPE_CHECKING:
    from tests.chaos.storm import Storm

# Faults come this often, on the average; what keeps one waiting is that there is nothing to harm yet.
EVERY_SECONDS = 0.5

# Whose life a fault is about: a run has all but "gateway", and those too if it is asked for them.
Room = Literal["workers", "administration", "loras", "gateway", "clients"]


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
    name = worker.environ().get("REPLICAST_WORKER_NAME", "")
    storm.target.life.stopped.append((time.time(), name))
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


# LoRAs


def _change(kind: orders.Kind | None = None) -> Callable[[Storm, Fault], Awaitable[None]]:
    """So many LoRAs set on one of the models, or none; or another change of it."""

    async def deed(storm: Storm, fault: Fault) -> None:
        storm.aside(storm.loras.order(orders.draw(Random(fault.dice_seed), kind, most=fault.count)))

    return deed


async def _race(storm: Storm, fault: Fault) -> None:
    """Several who change the same model at once."""
    dice = Random(fault.dice_seed)
    model = dice.choice(adapters.MODELS)
    for _ in range(fault.count):
        storm.aside(storm.loras.order(orders.draw(dice, model=model)))


def _strike(name: str) -> Callable[[Storm, Fault], Awaitable[None]]:
    """A LoRA that one of the replicas has trouble with."""

    async def deed(storm: Storm, fault: Fault) -> None:
        dice = Random(fault.dice_seed)
        await storm.loras.strike()
        storm.aside(storm.loras.order(orders.setting(adapters.STRUCK, adapters.one(name, dice), dice)))

    return deed


async def _leak(storm: Storm, fault: Fault) -> None:
    """Requests with a LoRA that one of the replicas leaves behind."""
    await storm.loras.strike()
    await _asks("leaky")(storm, fault)


async def _doom(storm: Storm, fault: Fault) -> None:
    """A LoRA that all of them agree to, and none can follow."""
    dice = Random(fault.dice_seed)
    storm.aside(storm.loras.order(orders.setting(adapters.DOOMED, adapters.one("doomed", dice), dice)))


# The gateway


async def _kill_gateway(storm: Storm, fault: Fault) -> None:
    await _again(storm, told_to_leave=False)


async def _restart_gateway(storm: Storm, fault: Fault) -> None:
    await _again(storm, told_to_leave=True)


async def _again(storm: Storm, *, told_to_leave: bool) -> None:
    """What was decided before is what holds as soon as it listens again."""
    await storm.target.end(told_to_leave=told_to_leave)
    await storm.target.begin()
    await storm.loras.look_at_all()


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
    "set_loras": Kind("loras", 12, _change("set"), count=(1, 2)),
    "clear_loras": Kind("loras", 3, _change("set"), count=(0, 0)),
    "merge_loras": Kind("loras", 6, _change("merge")),
    "unmerge_loras": Kind("loras", 4, _change("unmerge")),
    "unload_lora": Kind("loras", 3, _change("unload")),
    "race_of_loras": Kind("loras", 4, _race, count=(2, 5)),
    "lora_refused_by_one": Kind("loras", 3, _strike("refused")),
    "lora_deadly_to_one": Kind("loras", 3, _strike("deadly")),
    "lora_broken_in_one": Kind("loras", 3, _strike("broken")),
    "lora_fatal_to_one": Kind("loras", 3, _strike("fatal")),
    "lora_left_behind_by_one": Kind("loras", 4, _leak, count=(2, 6)),
    "lora_of_nobody": Kind("loras", 1, _doom),
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
