"""What an engine needs of a backend, and the table of those there are. Adding one: a file and a line in BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from shared.messages import Device, ModelCard, Run, WantedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as a backend leaves it: pixels (height, width, 3 or 4), uint8, or bytes already encoded as asked."""

    seed: int
    pixels: Pixels | None = None
    encoded: bytes | None = None


# Called by a backend after each denoising step with (steps done, steps in all). It raises `worker.engine.Stopped` when
# nobody waits for the picture any more; a backend lets that pass through and leaves its pipeline fit for the next run.
OnStep = Callable[[int, int], None]


class Backend(Protocol):
    """One resident model. Every call comes from the engine's one thread."""

    def load(self) -> ModelCard:
        """Bring the model onto the device. Raises LoadFailed, or OutOfMemory."""
        ...

    def generate(self, run: Run, inputs: Sequence[bytes | memoryview], on_step: OnStep) -> list[Picture]:
        """One picture per seed of `run`, in their order. Raises a ReplicastError; anything else is a bug."""
        ...

    def memory_bytes(self) -> int:
        """What the model holds on its device, in bytes."""
        ...

    def unload(self) -> None:
        """Give everything back. Never raises."""
        ...


BACKENDS = {
    "diffusion": "worker.backends.diffusion:Diffusion",
    "stub": "worker.backends.stub:Stub",
}


def create(model: WantedModel, device: Device) -> Backend:
    """The backend of a model, not yet loaded. Its module is imported here, on use: torch never meets the stub."""
    module, name = BACKENDS[model.backend].split(":")
    backend: Backend = getattr(import_module(module), name)(model, device)
    return backend
