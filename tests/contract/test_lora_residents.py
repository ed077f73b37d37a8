"""The worker's models over a real pipeline: from one LoRA state into the next where it is, or given back and told."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import LoraFailed
from shared.loras import LoraState
from shared.messages import Prepare, Wanted, WantedModel
from tests.contract.lora_rooms import BUILDERS, CPU, Replica, run, silent, unseen
from worker.backends import Inputs
from worker.residents import Residents

pytestmark = pytest.mark.model


@pytest.fixture
def other(tmp_path: Path) -> Replica:
    """Another replica, to compare with."""
    return Replica(BUILDERS["zimage"](tmp_path / "model"), tmp_path)


def wanted(other: Replica, epoch: int, loras: LoraState) -> Wanted:
    model = WantedModel(id="m", source=str(other.folder), backend="diffusion", epoch=epoch, loras=loras)
    return Wanted(version=epoch, models=(model,), shelf=str(other.shelf))


def drawn(residents: Residents, state: Wanted) -> bytes:
    [model] = state.models
    asked = run(1).model_copy(update={"epoch": model.epoch, "digest": model.digest})
    [picture] = residents.backend(asked).generate(asked, Inputs(), silent, unseen)
    assert picture.pixels is not None
    return picture.pixels.tobytes()


def test_a_pipeline_takes_on_each_state_where_it_is(other: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    residents = Residents(CPU)
    ink, oil = other.adapter(1), other.adapter(2)
    states = [
        LoraState(),
        LoraState(adapters=(ink,)),
        LoraState(adapters=(ink, oil), mode="merged", merge_scale=0.5),
        LoraState(adapters=(oil,)),
        LoraState(),
    ]
    held = None
    for epoch, loras in enumerate(states):
        state = wanted(other, epoch, loras)
        if epoch:
            vote = residents.prepare(Prepare(model="m", epoch=epoch, loras=loras))
            assert (vote.problem, vote.digest, len(vote.matches)) == (None, loras.digest, len(loras.adapters))
        [outcome] = residents.reconcile(state)
        assert outcome.card is not None
        assert outcome.fingerprint == other.backend.adopt(loras, str(other.shelf))
        assert drawn(residents, state) == other.picture()
        assert held in (None, residents._held["m"].backend), "it was loaded anew"
        held = residents._held["m"].backend

    def fail(*_: object) -> str:
        raise LoraFailed("out of luck")

    monkeypatch.setattr(held, "adopt", fail)
    [outcome] = residents.reconcile(wanted(other, 9, states[1]))
    assert outcome.card is None
    assert outcome.problem is not None
    assert outcome.problem.code == "lora_failed"
    residents.release()
    other.close()
