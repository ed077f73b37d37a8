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
