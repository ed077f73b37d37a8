"""The stub's LoRAs: its pictures tell which made them, and each fault comes when it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import AdapterMisfit, InvalidAdapter, LoraFailed, UnknownAdapter
from shared.loras import NO_LORAS, Adapter, LoraState
from shared.messages import Run
from tests.adapters import layers, packed, shelved
from tests.unit.test_stub import png, run, stub
from worker.backends.stub import Stub, read_back

PART = {"mode": "attached", "merge_target": "all", "overlay": False}


@pytest.fixture
def ink(tmp_path: Path) -> Adapter:
    return shelved(tmp_path, layers(1), "ink", scale=0.5)


@pytest.fixture
def oil(tmp_path: Path) -> Adapter:
    return shelved(tmp_path, layers(2, parts=("transformer", "text_encoder")), "oil")


def told(made: Stub, asked: Run | None = None) -> Any:
    return read_back(png(made, asked or run(1)))["loras"]


def test_a_picture_tells_the_state_that_made_it(tmp_path: Path, ink: Adapter, oil: Adapter) -> None:
    made = stub()
    state = LoraState(adapters=(ink, oil))
    made.adopt(state, str(tmp_path))
    pairs = sorted([[ink.sha256, 0.5, "all"], [oil.sha256, 1.0, "all"]])
    assert told(made) == PART | {"adapters": pairs}
    made.adopt(state.model_copy(update={"mode": "merged", "merge_scale": 0.5}), str(tmp_path))
    assert told(made) == PART | {
        "mode": "merged",
        "adapters": [[sha, scale / 2, target] for sha, scale, target in pairs],
    }
    made.adopt(NO_LORAS, str(tmp_path))
    assert told(made) == PART | {"adapters": []}


def test_equal_states_have_equal_checksums(tmp_path: Path, ink: Adapter, oil: Adapter) -> None:
    states = [NO_LORAS, LoraState(adapters=(ink,)), LoraState(adapters=(ink, oil)), LoraState(adapters=(oil, ink))]
    first, second = ([made.adopt(state, str(tmp_path)) for state in states] for made in (stub(), stub()))
    assert first == second
    assert len(set(first)) == 3


def test_a_runs_own_loras_are_gone_with_it(tmp_path: Path, ink: Adapter, oil: Adapter) -> None:
    made = stub()
    made.adopt(LoraState(adapters=(ink,)), str(tmp_path))
    for own in ((oil,), ()):
        used = told(made, run(1).model_copy(update={"loras": own}))
        assert used == PART | {"overlay": True, "adapters": [[each.sha256, each.scale, "all"] for each in own]}
    assert told(made)["adapters"] == [[ink.sha256, 0.5, "all"]]


def test_it_says_what_would_match(tmp_path: Path, ink: Adapter, oil: Adapter) -> None:
    made = stub()
    first, second = made.prepare(LoraState(adapters=(oil, ink)), str(tmp_path))
    assert (first.sha256, first.matched) == (oil.sha256, {"transformer": 1, "text_encoder": 1})
    assert (second.matched, second.bytes) == ({"transformer": 1}, 2 * 2 * 8 * 4)
    [part] = made.prepare(LoraState(adapters=(oil.model_copy(update={"target": "text_encoder"}),)), str(tmp_path))
    assert part.matched == {"text_encoder": 1}
    assert told(made)["adapters"] == [], "nothing is moved"


def bad(shelf: Path) -> list[tuple[Adapter, type[Exception], str]]:
    good = layers(3)
    nan = packed({"layer.lora_A.weight": np.full((2, 8), np.nan, np.float16)})
    infinite = packed({"layer.lora_A.weight": np.array([[1.0, -np.inf]], np.float32)})
    other = shelved(shelf, good + b"x", "longer")
    swapped = shelved(shelf, layers(4), "swapped")
    (shelf / f"{swapped.sha256}.safetensors").write_bytes(good)
    return [
        (Adapter(name="none", sha256="0" * 64), UnknownAdapter, "not on the shelf"),
        (Adapter(name="path", sha256="../" + "0" * 61), InvalidAdapter, "named by the sha256"),
        (shelved(shelf, good[:-9], "short"), InvalidAdapter, "cut off"),
        (shelved(shelf, b"", "empty"), InvalidAdapter, "too short"),
        (other, InvalidAdapter, "belong to no tensor"),
        (swapped, InvalidAdapter, "not that of its hash"),
        (shelved(shelf, nan, "nan"), InvalidAdapter, "NaN or infinity"),
        (shelved(shelf, infinite, "infinite"), InvalidAdapter, "NaN or infinity"),
        (shelved(shelf, packed({"weight": np.ones((2, 2), np.float32)}), "no lora"), AdapterMisfit, "changes nothing"),
        (shelved(shelf, good, "elsewhere", target="unet"), AdapterMisfit, "changes nothing"),
    ]


def test_what_is_no_lora_is_refused_and_moves_nothing(tmp_path: Path, ink: Adapter) -> None:
    made = stub()
    state = LoraState(adapters=(ink,))
    made.adopt(state, str(tmp_path))
    for adapter, error, words in bad(tmp_path):
        with pytest.raises(error, match=words):
            made.prepare(LoraState(adapters=(ink, adapter)), str(tmp_path))
        assert told(made)["adapters"] == [[ink.sha256, 0.5, "all"]]


def test_a_pipe_on_the_shelf_holds_nobody_up(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / f"{'f' * 64}.safetensors")
    with pytest.raises(InvalidAdapter, match="no regular file"):
        stub().prepare(LoraState(adapters=(Adapter(name="pipe", sha256="f" * 64),)), str(tmp_path))


def test_a_word_brings_its_fault_and_spares_all_other_names(tmp_path: Path, ink: Adapter, oil: Adapter) -> None:
    made = stub(fail_prepare="ink", fail_adopt="ink", fail_adopt_times=2, fail_overlay="ink")
    state = LoraState(adapters=(ink, oil))
    made.prepare(LoraState(adapters=(oil,)), str(tmp_path))
    with pytest.raises(AdapterMisfit, match="told to refuse"):
        made.prepare(state, str(tmp_path))
    for _ in range(2):
        with pytest.raises(LoraFailed, match="told to fail"):
            made.adopt(state, str(tmp_path))
        assert told(made)["adapters"] == [[ink.sha256, 0.5, "all"]], "it fails half-way"
    made.adopt(state, str(tmp_path))
    assert len(told(made)["adapters"]) == 2
    with pytest.raises(LoraFailed, match="leave a run's LoRAs behind"):
        told(made, run(1).model_copy(update={"loras": (ink,)}))
    assert told(made)["adapters"] == [[ink.sha256, 0.5, "all"]], "it is left behind"


def test_of_several_replicas_one_is_struck(tmp_path: Path, ink: Adapter) -> None:
    (tmp_path / "strike").touch()
    state = LoraState(adapters=(ink,))
    refused = 0
    for made in [stub(fail_prepare="ink", struck=str(tmp_path / "strike")) for _ in range(3)]:
        for _ in range(2):
            try:
                made.prepare(state, str(tmp_path))
            except AdapterMisfit:
                refused += 1
    assert refused == 2, "twice the same one"
