"""Checkpoints of the training: safetensors files with a JSON note inside, written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def write(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """Writes tensors and anything JSON can say; a reader sees the old file or the new one, never half of one."""
    temporary = path.with_suffix(".tmp")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, temporary, metadata={"note": json.dumps(note)})
    temporary.replace(path)


def read(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], Any]:
    """The tensors and the note."""
    with safe_open(path, framework="pt", device=device) as file:
        note = json.loads((file.metadata() or {}).get("note", "null"))
        return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118 - no mapping


def flat(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{k}.{name}": value for k, entry in state.items() for name, value in entry.items()}


def unflat(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Puts such named tensors back into an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            number, _, key = name.removeprefix(prefix).partition(".")
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
