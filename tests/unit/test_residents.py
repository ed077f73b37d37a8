"""The models that a worker holds: loaded once, brought from one LoRA state into the next, and mended when in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import Behind
from shared.loras import Adapter, LoraState
from shared.messages import Option, Prepare, Wanted, WantedModel
from tests.adapters import layers, shelved
from tests.unit.test_stub import DEVICE, png, run
from worker.backends.stub import read_back
from worker.device import DeviceLost
from worker.residents import Residents


@pytest.fixture
def residents() -> Residents:
    return Residents(DEVICE)


@pytest.fixture
def ink(tmp_path: Path) -> Adapter:
    return shelved(tmp_path, layers(1), "ink")


def wanted(shelf: Path, epoch: int = 0, *adapters: Adapter, source: str = "stub", **options: Option) -> Wanted:
    model = WantedModel(
        id="m", source=source, backend="stub", options=options, epoch=epoch, loras=LoraState(adapters=adapters)
    )
    return Wanted(version=epoch, models=(model,), shelf=str(shelf))


def drawn(residents: Residents, state: Wanted) -> Any:
    [model] = state.models
    asked = run(1).model_copy(update={"model": "m", "epoch": model.epoch, "digest": model.digest})
    return read_back(png(residents.backend(asked), asked))  # type: ignore[arg-type]


def test_a_model_takes_on_loras_where_it_is(residents: Residents, tmp_path: Path, ink: Adapter) -> None:
    first, second = wanted(tmp_path), wanted(tmp_path, 1, ink)
    [loaded] = residents.reconcile(first)
    held = residents._held["m"].backend
    [adopted] = residents.reconcile(second)
    assert residents._held["m"].backend is held
    assert adopted.card == loaded.card
    assert (adopted.epoch, adopted.digest) == (1, second.models[0].digest)
    assert adopted.fingerprint not in ("", loaded.fingerprint)
    assert drawn(residents, second)["loras"]["adapters"] == [[ink.sha256, 1.0, "all"]]
    with pytest.raises(Behind):
        drawn(residents, first)
    [resident] = residents.facts()
    assert (resident.epoch, resident.fingerprint) == (1, adopted.fingerprint)
    assert residents.reconcile(second) == (adopted,)


def test_a_model_has_its_loras_from_the_start(residents: Residents, tmp_path: Path, ink: Adapter) -> None:
    state = wanted(tmp_path, 4, ink)
    [outcome] = residents.reconcile(state)
    assert outcome.card is not None
    assert (outcome.epoch, outcome.problem) == (4, None)
    assert drawn(residents, state)["loras"]["adapters"] == [[ink.sha256, 1.0, "all"]]


@pytest.mark.parametrize("other", [{"source": "other"}, {"steps": 9}], ids=["source", "options"])
def test_whatever_else_differs_is_loaded_anew(residents: Residents, tmp_path: Path, other: dict[str, Any]) -> None:
    residents.reconcile(wanted(tmp_path))
    held = residents._held["m"].backend
    residents.reconcile(wanted(tmp_path, **other))
    assert residents._held["m"].backend not in (None, held)


def test_what_fails_once_is_tried_again(residents: Residents, tmp_path: Path, ink: Adapter) -> None:
    faults: dict[str, Option] = {"fail_adopt": "ink", "fail_adopt_times": 1}
    residents.reconcile(wanted(tmp_path, **faults))
    [outcome] = residents.reconcile(wanted(tmp_path, 1, ink, **faults))
    assert (outcome.problem, outcome.epoch) == (None, 1)


def test_what_fails_twice_is_not_served(residents: Residents, tmp_path: Path, ink: Adapter) -> None:
    before, after = wanted(tmp_path, fail_adopt="ink"), wanted(tmp_path, 1, ink, fail_adopt="ink")
    residents.reconcile(before)
    [outcome] = residents.reconcile(after)
    assert outcome.problem is not None
    assert outcome.problem.code == "lora_failed"
    assert outcome.card is None
    assert residents.facts() == ()
    for state in (before, after):
        with pytest.raises(Behind):
            drawn(residents, state)
    [back] = residents.reconcile(before)
    assert back.card is not None, "the next state finds it loaded anew"


def test_weights_in_doubt_are_mended(residents: Residents, tmp_path: Path, ink: Adapter) -> None:
    state = wanted(tmp_path)
    residents.reconcile(state)
    held = residents._held["m"].backend
    assert held is not None
    held.adopt(LoraState(adapters=(ink,)), str(tmp_path))
    residents.mend()
    assert drawn(residents, state)["loras"]["adapters"], "nobody doubted it"
    residents.doubt("m")
    residents.mend()
    assert drawn(residents, state)["loras"]["adapters"] == []


def test_weights_that_cannot_be_mended_end_the_process(residents: Residents, tmp_path: Path, ink: Adapter) -> None:
    residents.reconcile(wanted(tmp_path, 1, ink))
    (tmp_path / f"{ink.sha256}.safetensors").unlink()
    residents.doubt("m")
    with pytest.raises(DeviceLost, match="not on the shelf"):
        residents.mend()


def test_a_state_is_prepared_and_nothing_is_moved(residents: Residents, tmp_path: Path, ink: Adapter) -> None:
    state = wanted(tmp_path, 3)
    residents.reconcile(state)
    loras = LoraState(adapters=(ink,))
    said = residents.prepare(Prepare(model="m", epoch=4, loras=loras))
    assert (said.model, said.epoch, said.digest, said.problem) == ("m", 4, loras.digest, None)
    assert said.matches[0].matched == {"transformer": 1}
    assert drawn(residents, state)["loras"]["adapters"] == []


@pytest.mark.parametrize(("model", "epoch"), [("other", 4), ("m", 2), ("m", 3)], ids=["unknown", "past", "decided"])
def test_who_is_asked_about_another_past_is_behind(
    residents: Residents, tmp_path: Path, ink: Adapter, model: str, epoch: int
) -> None:
    residents.reconcile(wanted(tmp_path, 3))
    said = residents.prepare(Prepare(model=model, epoch=epoch, loras=LoraState(adapters=(ink,))))
    assert said.problem is not None
    assert said.problem.code == "behind"
    assert (said.model, said.epoch) == (model, epoch)


def test_what_cannot_be_adopted_is_told_and_never_raised(
    residents: Residents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    residents.reconcile(wanted(tmp_path))
    asked = Prepare(model="m", epoch=1, loras=LoraState(adapters=(Adapter(name="x", sha256="0" * 64),)))

    def code() -> str:
        said = residents.prepare(asked)
        assert said.problem is not None
        return said.problem.code

    assert code() == "lora_not_found"
    for error, expected in ((MemoryError(), "out_of_memory"), (ValueError("a bug"), "lora_failed")):

        def fail(loras: LoraState, shelf: str, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(residents._held["m"].backend, "prepare", fail)
        assert code() == expected


def test_a_file_that_is_gone_is_told_as_that_and_can_be_done_without(
    residents: Residents, tmp_path: Path, ink: Adapter
) -> None:
    (tmp_path / f"{ink.sha256}.safetensors").unlink()
    [outcome] = residents.reconcile(wanted(tmp_path, 1, ink))
    assert outcome.problem
    assert (outcome.card, outcome.problem.code) == (None, "lora_not_found")
    [outcome] = residents.reconcile(wanted(tmp_path, 2))
    assert outcome.card
    assert outcome.epoch == 2
