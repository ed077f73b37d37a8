"""Storms of faults by a seed cost clients time and nothing else, and when they are over nothing is left of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.storm import Report, Storm, replay
from tests.guard import guarded

pytestmark = [pytest.mark.process, pytest.mark.chaos]

SECONDS = 45.0


def weather(
    seed: int, seconds: float, folder: Path, *, gateway: bool = False, program: Sequence[str] = ("gateway",)
) -> Report:
    """One storm. What breaks is told with the command that brings it again."""
    again = replay(seed, seconds, gateway=gateway)
    print(f"\nchaos: {again}", flush=True)
    try:
        with guarded() as runtime:
            report = asyncio.run(Storm(seed, seconds, folder, runtime, gateway=gateway, program=program).run())
    except Exception as error:
        raise AssertionError(f"again: {again}") from error
    print(report, flush=True)
    assert not report.violations, f"{report}\nagain: {again}"
    return report


def expect_a_storm(report: Report, seconds: float) -> None:
    """Something has happened at all: a storm that brought nothing proves nothing."""
    assert report.faults.total() > seconds / 2, report
    assert report.outcomes["200"] > seconds, report
    assert report.workers > seconds / 10, report
    assert report.epochs > seconds / 10, report


@pytest.mark.timeout(400)
def test_a_storm_costs_time_and_nothing_else(tmp_path: Path) -> None:
    expect_a_storm(weather(1, SECONDS, tmp_path), SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_storm_that_ends_the_gateway_itself_leaves_nobody_behind(tmp_path: Path) -> None:
    report = weather(2, 90.0, tmp_path, gateway=True)
    expect_a_storm(report, 90.0)
    assert report.gateways > 3, report


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_storm_that_nobody_has_seen_costs_time_and_nothing_else(tmp_path: Path) -> None:
    expect_a_storm(weather(secrets.randbelow(1_000_000), 120.0, tmp_path), 120.0)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("no_requeue", "starved"),
        ("no_blame", "starved"),
        ("number_without_content", "and it shows"),
        ("answers_tell_the_models", "its answer tells of"),
    ],
)
def test_a_storm_over_a_gateway_with_a_mistake_finds_it(tmp_path: Path, mistake: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        weather(7, 40.0, tmp_path, program=("tests.chaos.planted", mistake))
