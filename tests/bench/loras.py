"""What LoRAs cost: `python -m tests.bench.loras`, on tiny random pipelines, in denoising steps and pictures.

In CPU seconds of one thread, and in turns: the machine may be busy with other things.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from shared.loras import Adapter
from tests.contract.lora_rooms import BUILDERS, STEPS, Replica


def main() -> None:
    """Measure each family and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore", message="__array__", category=DeprecationWarning)
    print(f"{rounds} rounds, medians, CPU ms of one thread; a LoRA of rank 4 in every layer; in steps and in pictures")
    for family, build in BUILDERS.items():
        with tempfile.TemporaryDirectory(prefix="rbench-") as folder:
            _measure(family, Replica(build(Path(folder) / family), Path(folder)), rounds)


def _measure(family: str, one: Replica, rounds: int) -> None:
    ink, oil = one.adapter(1), one.adapter(2)
    new = iter([one.adapter(100 + place) for place in range(rounds + 1)])
    acts: dict[str, Callable[[], object]] = {
        "set, read and attached": lambda: one.adopt(next(new)),
        "switch between resident ones": lambda: one.adopt(oil),
        "merge": lambda: one.adopt(ink, mode="merged"),
        "unmerge": lambda: one.adopt(),
    }
    one.adopt(oil)
    one.adopt(ink)
    spent: dict[str, list[float]] = {name: [] for name in ("step", "picture", "own", *acts)}
    for _ in range(rounds):
        step, picture = _drawn(one)
        spent["step"].append(step)
        spent["picture"].append(picture)
        spent["own"].append(_drawn(one, (oil,))[1])
        for name, act in acts.items():
            spent[name].append(_spent(act))
        one.adopt(ink)
    middle = {name: statistics.median(each) for name, each in spent.items()}
    print(f"\n{family}: a step {middle['step']:.1f} ms, a picture of {STEPS} steps {middle['picture']:.1f} ms")
    # Of neighbours in time.
    extra = statistics.median(own - plain for own, plain in zip(spent["own"], spent["picture"], strict=True))
    for name, cost in [("a request's own, resident", extra), *((name, middle[name]) for name in acts)]:
        print(
            f"  {name:30} {cost:7.2f} ms  {cost / middle['step']:6.2f} steps  {cost / middle['picture']:6.2f} pictures"
        )
    one.close()


def _drawn(one: Replica, loras: tuple[Adapter, ...] | None = None) -> tuple[float, float]:
    """A denoising step of a picture and the whole of it, in CPU ms."""
    steps: list[float] = []
    whole = _spent(lambda: one.picture(loras, lambda step, total: steps.append(time.thread_time() * 1000)))
    return steps[1] - steps[0], whole


def _spent(act: Callable[[], object]) -> float:
    began = time.thread_time()
    act()
    return (time.thread_time() - began) * 1000


if __name__ == "__main__":
    main()
