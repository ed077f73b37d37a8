"""LoRAs and the engine: votes beside whatever runs, weights between two runs, and none in doubt is used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.errors import LoraFailed
from shared.loras import Adapter, LoraState
from shared.messages import Ack, Done, Prepare, Prepared, Wanted
from tests.unit.stage import MODEL, Stage, fail, finish, staged, step


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    yield from staged(monkeypatch)


def test_a_vote_is_cast_while_the_device_is_busy(stage: Stage) -> None:
    stage.begin("a")
    stage.engine.prepare(Prepare(model="m", epoch=1, loras=LoraState(adapters=(Adapter(name="x", sha256="0" * 64),))))
    stage.wait(lambda: stage.of(Prepared))
    [vote] = stage.of(Prepared)
    assert (vote.problem, [match.sha256 for match in vote.matches]) == (None, ["0" * 64])
    assert not stage.ends("a")


def test_weights_are_changed_between_two_runs(stage: Stage) -> None:
    stage.begin("a")
    new = MODEL.model_copy(update={"epoch": 1, "loras": LoraState(adapters=(Adapter(name="x", sha256="0" * 64),))})
    stage.engine.apply(Wanted(version=2, models=(new,), shelf="here"))
    stage.puppet.order(step(1))
    assert len(stage.puppet.adopted) == 1
    stage.puppet.orders.put(finish)
    stage.wait(lambda: len(stage.of(Ack)) == 2)
    assert stage.puppet.adopted[1:] == [(new.loras, "here")]
    [outcome] = stage.of(Ack)[1].outcomes
    assert (outcome.epoch, outcome.digest, outcome.fingerprint) == (1, new.digest, new.loras.digest[:8])
    assert isinstance(stage.ended("a"), Done)
    stage.run("b")
    assert stage.code("b") == "behind"


def test_weights_in_doubt_are_mended_before_they_are_used_again(stage: Stage) -> None:
    stage.begin("a")
    stage.puppet.order(fail(LoraFailed("in doubt")))
    assert stage.code("a") == "lora_failed"
    stage.begin("b")
    assert len(stage.puppet.adopted) == 2
