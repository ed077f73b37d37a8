"""What an engine needs of a backend, and the table of those there are. Adding one: a file and a line in BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from shared.cards import ModelCard
from shared.loras import LoraState
from shared.messages import Device, Match, Run, Tokens, WantedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


NO_TOKENS = Tokens()


@dataclass(frozen=True, slots=True)
class Inputs:
    """The pictures to work from, RGB, in their order; for an inpainting the mask of the first, 255 where to paint.

    The mask may have another size than its picture, and is then stretched over it.
    """

    images: tuple[Pixels, ...] = ()
    mask: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as a backend leaves it: pixels (height, width, 3 or 4), uint8, or bytes already encoded as asked."""

    seed: int
    pixels: Pixels | None = None
    encoded: bytes | None = None
    tokens: Tokens = NO_TOKENS


# Called by a backend after each denoising step with (steps done, steps in all). It raises `worker.engine.Stopped` when
# nobody waits for the picture any more; a backend lets that pass through and leaves its pipeline fit for the next run.
OnStep = Callable[[int, int], None]

# Called with the number of a preview, counted from 0, and its pixels, RGB, of any size. Never raises, never waits.
OnPreview = Callable[[int, "Pixels"], None]


def preview_steps(steps: int, previews: int) -> dict[int, int]:
    """After which of `steps` which preview is due: evenly spaced, none after the last, fewer where steps are few."""
    due = (round(steps * (index + 1) / (previews + 1)) for index in range(previews))
    return {step: index for index, step in enumerate(sorted(set(due) & set(range(1, steps))))}


class Backend(Protocol):
    """One resident model. Every call but `prepare` comes from the engine's one thread."""

    def load(self) -> ModelCard:
        """Bring the model onto the device. Raises LoadFailed, or OutOfMemory."""
        ...

    def generate(self, run: Run, inputs: Inputs, on_step: OnStep, on_preview: OnPreview) -> list[Picture]:
        """One picture per seed of `run`, in their order. Raises a ReplicastError; anything else is a bug.

        Previews are numbered through: those of the second seed follow those of the first. With `run.loras` these take
        the place of the adopted ones until it ends, however it ends. Raises LoraFailed where the adopted state could
        not be brought back: the weights are in doubt until `adopt` is called again.
        """
        ...

    def generate_together(self, runs: Sequence[Run], on_step: OnStep) -> list[Picture]:
        """The picture of each of these runs, of one seed each, made in one call; raises for all of them or none.

        They are generations without previews, of one size, with equal steps, guidance and LoRAs, and a negative prompt
        for all or for none. Asked only of a model whose card has a `max_batch` of as many.
        """
        ...

    def prepare(self, loras: LoraState, shelf: str) -> tuple[Match, ...]:
        """What each LoRA of this state would change, in its order; it is read and held ready, and nothing is moved.

        Called from another thread, also while a picture is made. Raises InvalidAdapter, AdapterMisfit, UnknownAdapter
        or OutOfMemory where the state cannot be adopted.
        """
        ...

    def adopt(self, loras: LoraState, shelf: str) -> str:
        """Bring the weights into this state, whatever they are now; the checksum of all that a LoRA may touch.

        Equal states have equal checksums, in every process on devices of one kind. Until the first call a loaded model
        has no LoRAs. Raises a ReplicastError; the weights are then in doubt until a next call, which starts afresh.
        """
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
