"""What previews cost: `python -m tests.bench.previews`, the embedded model with and without them, in turns."""

from __future__ import annotations

import argparse
import os
import statistics
import time

from shared.messages import Device, Parameters, Run
from shared.sources import wanted
from worker import backends, finishing
from worker.backends import Backend, Inputs, OnPreview

_SIDE, _STEPS, _PREVIEWS = 512, 6, 3


def main() -> None:
    """Measure and print: the device's time for a picture with none and with three previews, and what encoding takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    made = backends.create(wanted("shapes"), Device(kind="cpu", names=("cpu",), threads=1))
    made.load()
    for previews in (0, _PREVIEWS):
        _seconds(made, previews)
    plain, shown, encoding = [], [], []
    for _ in range(rounds):
        plain.append(_seconds(made, 0))
        shown.append(_seconds(made, _PREVIEWS))
        encoding.append(_encoding(made))
    made.unload()
    alone, with_them, more = (statistics.median(each) for each in (plain, shown, encoding))
    # Of neighbours in time, since a shared machine is faster at one moment than at another.
    share = statistics.median(after / before - 1 for before, after in zip(plain, shown, strict=True))
    print(f"load {os.getloadavg()[0]:.1f}; {rounds} rounds; {_STEPS} steps; one thread of CPU time")
    print(f"a picture: {alone * 1000:.1f} ms, with {_PREVIEWS} previews {with_them * 1000:.1f} ms: {share:+.1%}")
    print(f"beside the device, enlarging and encoding one at {_SIDE}x{_SIDE} as PNG: {more * 1000:.1f} ms")


def _run(previews: int) -> Run:
    asked = Parameters(
        prompt="a red circle on a blue background", width=_SIDE, height=_SIDE, steps=_STEPS, guidance=2.0
    )
    return Run(
        job="j",
        attempt=1,
        model="shapes",
        task="generate",
        seeds=(1,),
        parameters=asked,
        epoch=0,
        digest="",
        previews=previews,
    )


def _seconds(made: Backend, previews: int, on_preview: OnPreview = lambda number, pixels: None) -> float:
    """CPU time of this thread, which is the device here: others on the machine do not count."""
    began = time.thread_time()
    made.generate(_run(previews), Inputs(), lambda step, total: None, on_preview)
    return time.thread_time() - began


def _encoding(made: Backend) -> float:
    took: list[float] = []

    def encode(number: int, pixels: backends.Pixels) -> None:
        began = time.thread_time()
        finishing.preview(pixels, _run(1))
        took.append(time.thread_time() - began)

    _seconds(made, 1, encode)
    return took[0]


if __name__ == "__main__":
    main()
