"""Which accelerators this machine lets us use, and how they are cut into slices. The only file that imports pynvml.

Nothing here wakes CUDA: the gateway never does, and a worker must not before its own slice is set.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as CUDA_VISIBLE_DEVICES names it (an index, a UUID, or a MIG name), with its memory in bytes."""

    name: str
    model: str
    memory_bytes: int


def visible_gpus(visible: str | None = None) -> tuple[Gpu, ...]:
    """The GPUs this process may use, in the order of CUDA_VISIBLE_DEVICES; empty without a driver.

    `visible` stands for the variable; None reads it. The names stay strings: they may be UUIDs, and an index is only
    meaningful in the list it came from.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    with _nvml() as nvml:
        if nvml is None:
            return ()
        if visible is None:
            return tuple(_gpu(nvml, str(index)) for index in range(nvml.nvmlDeviceGetCount()))
        names = [name.strip() for name in visible.split(",") if name.strip()]
        # CUDA itself ends the list at the first name it does not accept; -1 is the customary "none".
        if "-1" in names:
            names = names[: names.index("-1")]
        return tuple(_gpu(nvml, name) for name in names)


def slices(names: Sequence[str], per_model: int, count: int | None = None) -> tuple[tuple[str, ...], ...]:
    """Consecutive groups of `per_model` names, `count` of them (all that fit without it).

    Raises ConfigError if there are not enough.
    """
    possible = len(names) // per_model
    wanted = possible if count is None else count // per_model
    if count is not None and count % per_model:
        raise ConfigError(f"--num-gpus {count} is not a multiple of --gpus-per-model {per_model}", param="num_gpus")
    if not 0 < wanted <= possible:
        raise ConfigError(
            f"{len(names)} GPU(s) are visible: not enough for {wanted or 1} replica(s) of {per_model} GPU(s)",
            param="num_gpus",
        )
    return tuple(tuple(names[at * per_model : (at + 1) * per_model]) for at in range(wanted))


def has_mps() -> bool:
    """Whether this is a machine with Apple's GPU."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def cpu_count() -> int:
    """Cores that this process may use: its affinity, and what the quota of its container leaves of that."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML while it is open, or None on a machine without it."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def _gpu(nvml: Any, name: str) -> Gpu:
    try:
        handle = _handle(nvml, name)
        return Gpu(name, str(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
    except nvml.NVMLError as error:
        raise ConfigError(f"GPU {name!r} is not on this machine: {error}", param="gpus") from error
