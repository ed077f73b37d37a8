"""What grows: a live server through many requests and restarts of its workers, weighed whenever it is quiet."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import linear_regression

import httpx2
import psutil

from tests.chaos import adapters
from tests.chaos.history import History
from tests.chaos.target import Target, within
from tests.chaos.wishes import TROUBLES, Wish, ask, draw, mistakes, models

# Of the slope of the second half, over 20,000 requests: less cannot be told from an allocator that settles.
MOST_BYTES_PER_REQUEST = 1024.0
REPLICAS = 6
_CLIENTS = 16
# So many of the workers may be missing at once; the others draw.
_MISSING = 3
_TIMEOUT_SECONDS = 60.0
_SETTINGS: dict[str, object] = {
    "ping_seconds": 0.2,
    "suspect_after_pings": 10,
    "gone_after_pings": 50,
    "max_attempts": 10,
    "request_timeout_seconds": _TIMEOUT_SECONDS,
    "restart_backoff_seconds": 0.05,
    "restart_limit": 100,
    "restart_window_seconds": 1.0,
    # Links and their pictures come and go many times.
    "result_seconds": 2,
    "log_format": "json",
}
_COUNTED = ("descriptors", "tasks")
_KINDS = {"plain": 50, "edit": 10, "stream": 10, "url": 10, "leaver": 10, "oom_at_step": 3, "failure": 3, "nonsense": 4}


@dataclass(frozen=True)
class Sample:
    """What the gateway held, quiet, when it had answered so many requests and started so many workers anew."""

    requests: int
    restarts: int
    rss_bytes: int
    descriptors: int
    tasks: int


@dataclass
class Weights:
    """The samples of a run, in their order, and how the requests between them went."""

    samples: list[Sample] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def slope(self, what: str) -> float:
        """What a request adds, over the second half of the samples: bytes, descriptors or tasks."""
        late = self.samples[len(self.samples) // 2 :]
        return linear_regression([each.requests for each in late], [getattr(each, what) for each in late]).slope

    def problems(self, most_bytes: float = MOST_BYTES_PER_REQUEST) -> list[str]:
        """What grew in the second half, or went wrong on the way."""
        found = list(self.wrong)
        if (slope := self.slope("rss_bytes")) > most_bytes:
            found.append(f"memory grows by {slope:.0f} bytes a request")
        half = len(self.samples) // 2
        requests = self.samples[-1].requests - self.samples[half].requests
        for what in _COUNTED:
            held = [getattr(sample, what) for sample in self.samples]
            # By one at least, and not only up to what it was before.
            if self.slope(what) * requests >= 1 and held[-1] > max(held[:half]):
                found.append(f"{what} grow: {held}")
        return found

    def __str__(self) -> str:
        first, middle, last = self.samples[0], self.samples[len(self.samples) // 2], self.samples[-1]
        told = [f"{last.requests} requests, {last.restarts} restarts of workers"]
        told.append(f"{self.slope('rss_bytes'):.0f} bytes a request in the second half")
        told.append("MiB " + " -> ".join(f"{each.rss_bytes / (1 << 20):.1f}" for each in (first, middle, last)))
        told += (
            f"{what} {' -> '.join(str(getattr(each, what)) for each in (first, middle, last))}" for what in _COUNTED
        )
        return "; ".join(told) + f"\n  {', '.join(f'{name} {times}' for name, times in self.outcomes.most_common())}"


async def soak(
    folder: Path,
    runtime: Path,
    *,
    rounds: int,
    requests: int,
    restarts: int,
    program: Sequence[str] = ("gateway",),
) -> Weights:
    """So many rounds of so many requests and restarts each, the gateway weighed after each of them.

    Raises Failed where the server does not come to rest.
    """
    history = History(timeout_seconds=_TIMEOUT_SECONDS, max_queue=1000)
    weights = Weights()
    with ExitStack() as stack:
        adapters.lay(folder / "loras")
        args = models(step_seconds=0, loras=folder / "loras")
        target = Target(
            *(folder, runtime, stack, history, args, _SETTINGS),
            replicas=REPLICAS,
            timeout_seconds=_TIMEOUT_SECONDS,
            program=program,
        )
        await target.begin()
        await within(target.is_whole, "the server is whole")
        dice = Random(1)
        for number in range(rounds):
            due = iter([_wish(dice, f"round{number}-{place}") for place in range(requests)])
            clients = [_client(target.http, due, weights) for _ in range(_CLIENTS)]
            await asyncio.gather(*clients, _restart(target, dice, restarts))
            await within(target.is_whole, "every worker is back")
            await within(target.is_quiet, "it has nothing in hand")
            size, rss = await _settled(target, weights.samples[:1]), psutil.Process(target.server.pid).memory_info().rss
            done = (number + 1) * requests, await target.metric("replicast_worker_restarts_total")
            weights.samples.append(Sample(*done, rss, size["descriptors"], size["tasks"]))
        await target.end(told_to_leave=True)
    return weights


async def _settled(target: Target, before: list[Sample]) -> Counter[str]:
    """What it holds, as soon as that is no more than before, or after a second."""
    for _ in range(20):
        size = await target.size()
        if not before or all(size[what] <= getattr(before[0], what) for what in _COUNTED):
            break
        await asyncio.sleep(0.05)
    return size


def _wish(dice: Random, name: str) -> Wish:
    """One of any kind; who leaves does so within the milliseconds that an answer takes here."""
    kind = dice.choices([*_KINDS], [*_KINDS.values()])[0]
    wish = draw(dice, name, kind)
    if kind == "nonsense":
        return replace(wish, body=wish.body | {"size": "0x0"})
    return replace(wish, patience=dice.uniform(0.0, 0.03)) if kind == "leaver" else wish


async def _client(http: httpx2.AsyncClient, due: itertools.chain[Wish], weights: Weights) -> None:
    for wish in due:
        try:
            async with asyncio.timeout(wish.patience):
                answer = await ask(http, wish, wish.name)
        except TimeoutError:
            weights.outcomes["left"] += 1
            continue
        outcome = answer.code or str(answer.status)
        weights.outcomes[outcome] += 1
        trouble = TROUBLES.get(wish.kind)
        expected = "invalid_value" if wish.kind == "nonsense" else trouble.code if trouble else "200"
        problems = [*answer.problems, *answer.twice, *(mistakes(wish, answer.pictures) if expected == "200" else ())]
        if outcome != expected or problems:
            weights.wrong.append(f"{wish.name} ({wish.kind}): {outcome} {problems}")


async def _restart(target: Target, dice: Random, times: int) -> None:
    """So many workers go and come back, killed or told to, a few at a time."""
    for at in range(0, times, _MISSING):
        count = min(_MISSING, times - at)
        before = await target.metric("replicast_worker_restarts_total")
        names = dice.sample(sorted(target.server.workers()), count)
        for name in names:
            if dice.random() < 0.5:
                await target.tell(name, "restart")
            else:
                psutil.Process(target.server.workers()[name]).kill()

        async def back(before: int = before, count: int = count) -> bool:
            restarted = await target.metric("replicast_worker_restarts_total")
            return restarted >= before + count and await target.is_whole()

        await within(back, "they are back")
