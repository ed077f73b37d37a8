"""Each mistake that is planted is noticed by its machine in random order; without one, nothing is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.unit.planted import MACHINES, NOT_NOTICED, NOTICED, Mutant

# On a machine that others keep busy; a mutant takes a second or two.
_MOST_SECONDS = 200.0
_ROOT = Path(__file__).resolve().parents[2]

MUTANTS: dict[str, Mutant] = {
    f"{machine}:{name}": mutant
    for machine, (module, _) in MACHINES.items()
    for name, mutant in import_module(module).MUTANTS.items()
}
Verdict = Callable[[str], tuple[int, str]]
pytestmark = pytest.mark.timeout(_MOST_SECONDS + 40)


@pytest.fixture(scope="module")
def verdict(request: pytest.FixtureRequest) -> Iterator[Verdict]:
    """What the machine says of a mutant. Those of all tests that were asked for run side by side, ahead of them."""
    here = (item for item in request.session.items if item.path == Path(__file__) and isinstance(item, pytest.Function))
    names = [str(item.callspec.params["name"]) for item in here if "name" in item.fixturenames]
    with ThreadPoolExecutor(os.cpu_count()) as lanes:
        running: dict[str, Future[tuple[int, str]]] = {name: lanes.submit(_look_for, name) for name in names}
        yield lambda name: running[name].result()
        lanes.shutdown(cancel_futures=True)


def _look_for(name: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.unit.planted", name]
    ran = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_MOST_SECONDS)
    return ran.returncode, ran.stdout + ran.stderr


def test_every_mutant_stands_where_it_says() -> None:
    """One that is not there any more is put where its line has gone, or taken off the list: never skipped."""
    for mutant in MUTANTS.values():
        spec = find_spec(mutant.module)
        assert spec
        assert spec.origin
        found = Path(spec.origin).read_text(encoding="utf-8").count(mutant.old)
        assert found == 1, f"{mutant.name}: its text stands {found} times in {mutant.module}"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_noticed(verdict: Verdict, name: str) -> None:
    status, said = verdict(name)
    assert status == NOTICED, said


@pytest.mark.parametrize("name", [f"{machine}:none" for machine in MACHINES])
def test_without_a_mutant_nothing_is_noticed(verdict: Verdict, name: str) -> None:
    status, said = verdict(name)
    assert status == NOT_NOTICED, said
