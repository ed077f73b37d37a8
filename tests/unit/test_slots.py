"""Which workers are started: slices of what is visible, as strings, never arithmetic on their names."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.settings import load
from gateway.slots import further, plan
from shared import devices
from shared.errors import BadInput, ConfigError

UUIDS = ("GPU-aa", "GPU-bb", "MIG-cc", "3")


def slots(*, have: tuple[str, ...] = (), cores: int = 8, mps: bool = False, **flags: Any) -> list[tuple[str, ...]]:
    return [(slot.name, *slot.devices) for slot in plan(load(flags), gpus=have, cores=cores, mps=mps)]


def test_one_replica_per_gpu() -> None:
    assert slots(have=UUIDS) == [("gpu0", "GPU-aa"), ("gpu1", "GPU-bb"), ("gpu2", "MIG-cc"), ("gpu3", "3")]


def test_slices_of_several() -> None:
    assert slots(have=UUIDS, gpus_per_model=2) == [("gpu0", "GPU-aa", "GPU-bb"), ("gpu1", "MIG-cc", "3")]
    assert slots(have=UUIDS, gpus_per_model=2, num_gpus=2) == [("gpu0", "GPU-aa", "GPU-bb")]


def test_only_those_that_were_named() -> None:
    assert slots(have=UUIDS, gpus="3,GPU-aa") == [("gpu0", "3"), ("gpu1", "GPU-aa")]


@pytest.mark.parametrize(
    "flags",
    [
        {"num_gpus": 5},
        {"gpus_per_model": 8},
        {"gpus_per_model": 2, "num_gpus": 3},
        {"gpus": ("7",)},
    ],
)
def test_more_than_there_are_is_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        slots(have=UUIDS, **flags)


def test_without_a_gpu_the_cores_are_divided() -> None:
    planned = plan(load({}), gpus=(), cores=8, mps=False)
    assert [(slot.kind, slot.threads) for slot in planned] == [("cpu", 4), ("cpu", 4)]
    assert [slot.threads for slot in plan(load({"num_gpus": 5}), gpus=(), cores=2, mps=False)] == [1] * 5


def test_a_device_that_is_not_there_is_refused() -> None:
    for device in ("cuda", "mps"):
        with pytest.raises(ConfigError, match=device):
            slots(device=device)


def test_cpu_is_cpu_even_beside_gpus() -> None:
    assert [name for name, *_ in slots(have=UUIDS, device="cpu")] == ["cpu0", "cpu1"]


def test_mps_is_one_replica() -> None:
    assert slots(mps=True) == [("gpu0", "mps")]


def test_pretended_devices() -> None:
    assert len(slots(device="stub:8")) == 8
    assert len(slots(device="stub:8", num_gpus=3)) == 3
    assert len(slots(device="stub")) == 2
    with pytest.raises(ConfigError):
        slots(device="stub:2", num_gpus=3)


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_a_hidden_gpu_is_not_there(visible: str) -> None:
    assert devices.visible_gpus(visible) == ()


def test_more_workers_are_like_those_there_are() -> None:
    present = plan(load({"device": "stub:2"}), gpus=(), cores=8, mps=False)
    assert [slot.name for slot in further(present, present, 2)] == ["stub2", "stub3"]
    assert further(present[1:], (), 1)[0].name == "stub0", "a name that is free is taken again"
    assert {slot.threads for slot in further(present, (), 3)} == {present[0].threads}, (
        "else their pictures would differ"
    )
    assert further(present, (), -1) == ()


def test_more_workers_than_gpus_there_are_not() -> None:
    everything = plan(load({"device": "cuda"}), gpus=("0", "1", "2"), cores=8, mps=False)
    assert [slot.devices for slot in further(everything[:1], everything, 2)] == [("1",), ("2",)]
    with pytest.raises(BadInput, match="There are GPUs for 3 replicas"):
        further(everything[:1], everything, 3)
