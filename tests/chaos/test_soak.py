"""Nothing grows: after many requests and restarts a gateway holds what it held before, and a leak would be seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.chaos.soak import MOST_BYTES_PER_REQUEST, Sample, Weights, soak
from tests.guard import guarded

# A gateway that is warm after a few hundred requests still takes a page here and there.
_SHORT_BYTES = 16 * MOST_BYTES_PER_REQUEST


def weighed(
    folder: Path, *, rounds: int, requests: int, restarts: int, program: Sequence[str] = ("gateway",)
) -> Weights:
    with guarded() as runtime:
        run = soak(folder, runtime, rounds=rounds, requests=requests, restarts=restarts, program=program)
        weights = asyncio.run(run)
    print(f"\n{weights}", flush=True)
    return weights


@pytest.mark.process
def test_hundreds_of_requests_and_some_restarts_leave_nothing_behind(tmp_path: Path) -> None:
    assert weighed(tmp_path, rounds=6, requests=80, restarts=2).problems(_SHORT_BYTES) == []


@pytest.mark.process
def test_a_gateway_that_leaks_is_found(tmp_path: Path) -> None:
    weights = weighed(tmp_path, rounds=6, requests=60, restarts=0, program=("tests.chaos.leaky",))
    memory, descriptors, tasks = weights.problems(_SHORT_BYTES)
    assert "memory grows" in memory
    assert "descriptors grow" in descriptors
    assert "tasks grow" in tasks


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20000_requests_and_500_restarts_leave_nothing_behind(tmp_path: Path) -> None:
    weights = weighed(tmp_path, rounds=40, requests=500, restarts=13)
    assert weights.problems() == []
    assert weights.samples[-1].requests == 20_000
    assert weights.samples[-1].restarts >= 500


@pytest.mark.parametrize(
    ("sample", "problems"),
    [
        (lambda n: Sample(n, n, 70 << 20, 40, 20), 0),
        # Warming up is no leak, and neither is a task that is still there at one look or the other.
        (lambda n: Sample(n, n, (70 << 20) + min(n, 5000) * 4096, 40 + (n < 3000), 20 + n // 1000 % 2), 0),
        (lambda n: Sample(n, n, (70 << 20) + 1000 * n, 40, 20), 0),
        (lambda n: Sample(n, n, (70 << 20) + 1100 * n, 40, 20), 1),
        (lambda n: Sample(n, n, 70 << 20, 40 + n // 5000, 20), 1),
        (lambda n: Sample(n, n, 70 << 20, 40, 20 + n // 5000), 1),
    ],
)
def test_what_counts_as_growing(sample: Callable[[int], Sample], problems: int) -> None:
    weights = Weights([sample(number) for number in range(1000, 21_000, 1000)])
    assert len(weights.problems()) == problems


def test_an_answer_that_is_not_as_expected_counts_too() -> None:
    weights = Weights([Sample(number, 0, 1, 1, 1) for number in range(4)], wrong=["a picture of something else"])
    assert weights.problems() == ["a picture of something else"]
