"""What a worker runs on, in torch's words: device, dtype, threads, memory. Imports torch only where it is asked."""

from __future__ import annotations

import sys
from typing import Any

from shared.errors import LoadFailed
from shared.messages import Device


class DeviceLost(Exception):
    """The device is in a state that no call can mend, as after an illegal address: only a new process can use it."""


def torch_device(device: Device) -> str:
    """The torch name of the first device of this worker's slice. Raises LoadFailed where a pipeline cannot run."""
    if device.kind == "stub":
        raise LoadFailed("this worker runs the stub only: a pipeline needs cuda, mps or cpu")
    return "cuda:0" if device.kind == "cuda" else device.kind


def torch_dtype(device: Device, on_cpu: str = "float32") -> Any:
    """The dtype of a pipeline's weights: bfloat16 on an accelerator, `on_cpu` (a name in torch) without one."""
    import torch

    return getattr(torch, on_cpu if device.kind == "cpu" else "bfloat16")


def set_threads(device: Device) -> None:
    """Hold torch to the threads of this device. Replicas give equal bytes only if they run with equally many."""
    import torch

    torch.set_num_threads(device.threads)
    # May be set once a process, and raises after that.
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)


def free_memory(device: Device) -> None:
    """Give back to the device what torch keeps in reserve; only what nothing refers to any more is there to give."""
    torch = sys.modules.get("torch")
    if torch and device.kind == "cuda":
        torch.cuda.empty_cache()
    elif torch and device.kind == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory: its own error, or the driver's or the C library's in a RuntimeError's text."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text


def is_lost(error: BaseException) -> bool:
    """Whether the error is CUDA's and stays: every later call in this process would fail like this one."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
