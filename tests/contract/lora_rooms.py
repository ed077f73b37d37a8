"""Replicas of tiny pipelines for the tests of LoRAs, each with what it draws and LoRA files made for its layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.loras import NO_LORAS, Adapter, LoraState
from shared.messages import Device, Match, Parameters, Run, WantedModel
from tests import tiny
from tests.adapters import Halves, drawn, peft, shelved
from worker import backends
from worker.backends import Inputs
from worker.loras.state import Limits, Loras

CPU = Device(kind="cpu", names=("cpu",), threads=1)
STEPS = 2


def _klein(folder: Path) -> Path:
    # Without a manifest it would read 512 tokens of padding for every picture.
    return tiny.klein(folder, tiny.manifest(multiples=(1,)))


BUILDERS: dict[str, Callable[[Path], Path]] = {"klein": _klein, "sdxl": tiny.sdxl, "zimage": tiny.zimage}


def silent(step: int, total: int) -> None:
    pass


def unseen(preview: int, pixels: object) -> None:
    pass


class Replica:
    """A loaded model; its pictures are bytes, so that equal means equal to the bit."""

    def __init__(self, folder: Path, shelf: Path, limits: Limits | None = None, device: Device = CPU) -> None:
        self.folder, self.shelf = folder, shelf
        self.backend: Any = backends.create(WantedModel(id="m", source=str(folder), backend="diffusion"), device)
        self.backend.load()
        if limits is not None:
            self.backend._loras = Loras(self.backend._pipeline, folder, limits)

    def adopt(self, *adapters: Adapter, **said: Any) -> str:
        return self.backend.adopt(LoraState(adapters=adapters, **said), str(self.shelf))  # type: ignore[no-any-return]

    def prepare(self, *adapters: Adapter, **said: Any) -> tuple[Match, ...]:
        state = LoraState(adapters=adapters, **said)
        return self.backend.prepare(state, str(self.shelf))  # type: ignore[no-any-return]

    def picture(self, loras: tuple[Adapter, ...] | None = None, on_step: Any = silent, seed: int = 1) -> bytes:
        [made] = self.backend.generate(run(seed, loras), Inputs(), on_step, unseen)
        return made.pixels.tobytes()  # type: ignore[no-any-return]

    def halves(self, seed: int, rank: int = 4, parts: tuple[str, ...] | None = None) -> Halves:
        """A LoRA for all layers of these parts, or of all."""
        slots = self.backend._loras._slots
        shapes = {part: {name: slot.shape for name, slot in slots[part].items()} for part in parts or slots}
        return drawn(shapes, seed, rank)

    def adapter(self, seed: int, name: str = "lora", rank: int = 4, **said: Any) -> Adapter:
        return shelved(self.shelf, peft(self.halves(seed, rank)), name, **said)

    def weights(self) -> dict[str, bytes]:
        """Every weight that a LoRA may touch, to the bit."""
        held = self.backend._loras._merged.weights
        return {
            f"{part}.{name}": weight.detach().view(-1).view(dtype=BYTES).numpy().tobytes()
            for part, inside in held.items()
            for name, weight in inside.items()
        }

    def close(self) -> None:
        self.adopt()
        self.backend.unload()


def run(seed: int, loras: tuple[Adapter, ...] | None = None, **changed: Any) -> Run:
    asked = Parameters(
        prompt="a cat", negative_prompt="a dog", width=64, height=64, steps=STEPS, guidance=3.0, **changed
    )
    return Run(
        job="j",
        attempt=1,
        model="m",
        task="generate",
        seeds=(seed,),
        parameters=asked,
        epoch=0,
        digest="d",
        loras=loras,
    )


def _bytes() -> Any:
    import torch

    return torch.uint8


BYTES = _bytes()
__all__ = ["BUILDERS", "NO_LORAS", "Replica", "run", "silent", "unseen"]
