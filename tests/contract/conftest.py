"""The backends that the contract's suites are run with: the stub and a tiny random FLUX.2-klein."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.cards import ModelCard
from shared.messages import Device, Option, WantedModel
from tests import tiny
from worker import backends
from worker.backends import Backend

CPU = Device(kind="cpu", names=("cpu",), threads=1)


@pytest.fixture(scope="session")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module", params=["stub", pytest.param("diffusion", marks=pytest.mark.model)])
def make(request: pytest.FixtureRequest) -> Callable[[], Backend]:
    """Makes the same model anew, not yet loaded."""
    source = "stub" if request.param == "stub" else str(request.getfixturevalue("klein"))
    options: dict[str, Option] = {"batch": 4} if request.param == "stub" else {}
    return lambda: backends.create(WantedModel(id="tiny", source=source, backend=request.param, options=options), CPU)


@pytest.fixture(scope="module")
def loaded(make: Callable[[], Backend]) -> Iterator[tuple[Backend, ModelCard]]:
    backend = make()
    card = backend.load()
    yield backend, card
    backend.unload()


@pytest.fixture
def backend(loaded: tuple[Backend, ModelCard]) -> Backend:
    return loaded[0]


@pytest.fixture
def card(loaded: tuple[Backend, ModelCard]) -> ModelCard:
    return loaded[1]
