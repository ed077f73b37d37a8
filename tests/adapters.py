"""LoRA files as a gateway puts them on the shelf: named by what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.loras import Adapter


def shelved(shelf: Path, data: bytes, name: str = "lora", **said: object) -> Adapter:
    """Any bytes on the shelf, under their hash."""
    sha256 = hashlib.sha256(data).hexdigest()
    (shelf / f"{sha256}.safetensors").write_bytes(data)
    return Adapter.model_validate({"name": name, "sha256": sha256, **said})


def packed(tensors: Mapping[str, NDArray[np.floating]], metadata: dict[str, str] | None = None) -> bytes:
    """The file with these tensors."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata)


def layers(seed: int = 0, rank: int = 2, side: int = 8, parts: tuple[str, ...] = ("transformer",)) -> bytes:
    """One that changes a layer named `layer` of each of these parts, which is what the stub takes."""
    drawn = np.random.default_rng(seed)
    return packed(
        {
            f"{part}.layer.lora_{half}.weight": drawn.normal(size=shape).astype(np.float32)
            for part in parts
            for half, shape in (("A", (rank, side)), ("B", (side, rank)))
        }
    )


# Of each part each layer with the shape of its weight.
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
Halves = dict[tuple[str, str], tuple[NDArray[np.float32], NDArray[np.float32]]]


def drawn(shapes: Shapes, seed: int = 0, rank: int = 4) -> Halves:
    """A random LoRA over all of these layers, strong enough to be seen: of each the matrix down and the one up."""
    values = np.random.default_rng(seed)
    halves: Halves = {}
    for part, inside in shapes.items():
        for name, (out, *inner) in inside.items():
            down = values.normal(size=(rank, *inner)) / np.sqrt(np.prod(inner))
            up = values.normal(size=(out, rank, *([1] * (len(inner) - 1)))) * 0.3
            halves[part, name] = (down.astype(np.float32), up.astype(np.float32))
    return halves


def peft(halves: Halves) -> bytes:
    """As PEFT and today's Diffusers write it."""
    return packed(
        {
            f"{part}.{name}.lora_{half}.weight": tensor
            for (part, name), pair in halves.items()
            for half, tensor in zip("AB", pair, strict=True)
        }
    )


def kohya(halves: Halves, prefixes: Mapping[str, str], alpha: float) -> bytes:
    """As kohya's scripts write it: names without dots, and an alpha that the scale is to be divided from."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for (part, name), (down, up) in halves.items():
        layer = prefixes[part] + name.replace(".", "_")
        tensors[f"{layer}.lora_down.weight"] = down
        # What PEFT's scale of 1 is, alpha / rank makes of it.
        tensors[f"{layer}.lora_up.weight"] = up * (down.shape[0] / np.float32(alpha))
        tensors[f"{layer}.alpha"] = np.float32(alpha).reshape(())
    return packed(tensors)


def old_diffusers(halves: Halves) -> bytes:
    """As Diffusers wrote it before PEFT: attention layers by their processors."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for (part, name), pair in halves.items():
        for half, tensor in zip(("down", "up"), pair, strict=True):
            block, _, last = name.removesuffix(".0").rpartition(".")
            if part == "unet" and last in ("to_q", "to_k", "to_v", "to_out"):
                tensors[f"{part}.{block}.processor.{last}_lora.{half}.weight"] = tensor
            else:
                tensors[f"{part}.{name}.lora.{half}.weight"] = tensor
    return packed(tensors)
