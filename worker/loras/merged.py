"""LoRAs in the weights: each touched tensor is its first bytes with all deltas added in float32, rounded once.

It is always made anew from those first bytes, kept in host memory or read again from the model's own files, and never
from what is there: fusing and unfusing in 16 bits leaves a tenth of the weights changed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from shared.errors import LoraFailed, OutOfMemory, UnsupportedOperation
from worker.loras.fitting import Layer, Slots

# Of each part and layer what is added to it, in the order in which it is.
Deltas = Mapping[str, Mapping[str, list[tuple[Layer, float]]]]


class Merged:
    """The weights of a pipeline that LoRAs may be added to, and the first bytes of those that were."""

    def __init__(
        self, parts: dict[str, torch.nn.Module], slots: Slots, folder: Path | None, max_pristine_bytes: int
    ) -> None:
        # Held by themselves: where a LoRA is attached, its layer is another module, around the same weight.
        self.weights: dict[str, dict[str, torch.nn.Parameter]] = {
            part: {name: parts[part].get_submodule(name).weight for name in inside} for part, inside in slots.items()
        }
        self._slots = slots
        self._files = {part: _files(folder / part) if folder else {} for part in slots}
        self._max_bytes = max_pristine_bytes
        self._touched: set[tuple[str, str]] = set()
        self._kept: dict[tuple[str, str], torch.Tensor] = {}

    @property
    def touched(self) -> frozenset[tuple[str, str]]:
        """Part and layer of every weight that is not as it was at first, or may not be."""
        return frozenset(self._touched)

    @property
    def kept_bytes(self) -> int:
        """What is kept aside in host memory."""
        return sum(tensor.nbytes for tensor in self._kept.values())

    def expect(self, layers: Mapping[str, Mapping[str, object]]) -> None:
        """Raises UnsupportedOperation or OutOfMemory where LoRAs cannot be added to these. For any thread."""
        held = 0
        for part, inside in layers.items():
            for name in inside:
                slot = self._slots[part][name]
                if slot.quantized:
                    raise UnsupportedOperation(f"{part} is quantized: LoRAs can be attached to it, and not merged")
                held += slot.bytes
                if held > self._max_bytes and f"{name}.weight" not in self._files[part]:
                    raise OutOfMemory(f"to merge, more than {self._max_bytes} bytes of weights have to be kept aside")

    def write(self, deltas: Deltas) -> None:
        """Have exactly these added, and nothing to any other weight."""
        wanted = {(part, name) for part, inside in deltas.items() for name in inside}
        for part, name in self._touched - wanted:
            self._restore(part, name)
        with _exact_matmul(), torch.no_grad():
            for part, name in sorted(wanted):
                self._write(part, name, deltas[part][name])

    def restore(self) -> None:
        """Every weight as it was at first, bit for bit. Raises LoraFailed where it cannot be had any more."""
        for part, name in sorted(self._touched):
            self._restore(part, name)

    def _write(self, part: str, name: str, added: list[tuple[Layer, float]]) -> None:
        weight = self.weights[part][name]
        first = self._first(part, name)
        total = first.to(weight.device, torch.float32, copy=True)
        for layer, scale in added:
            down, up = (half.to(weight.device, torch.float32).flatten(1) for half in (layer.down, layer.up))
            total.add_((up @ down).view(total.shape), alpha=scale)
        weight.copy_(total)

    def _restore(self, part: str, name: str) -> None:
        with torch.no_grad():
            self.weights[part][name].copy_(self._first(part, name))
        self._touched.discard((part, name))
        self._kept.pop((part, name), None)

    def _first(self, part: str, name: str) -> torch.Tensor:
        """The first bytes of a weight, on the host; from now on it counts as touched."""
        place = (part, name)
        if place in self._kept:
            return self._kept[place]
        weight = self.weights[part][name].detach()
        if place in self._touched:
            return self._read(part, name)
        if self.kept_bytes + weight.nbytes <= self._max_bytes:
            # Pinned where there is a GPU: the way back is short.
            kept = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda).copy_(weight)
            self._kept[place] = kept
            self._touched.add(place)
            return kept
        found = self._read(part, name)
        if not torch.equal(found, weight.cpu()):
            raise OutOfMemory(
                f"{part}.{name} is not in its file as it was loaded, "
                f"and more than {self._max_bytes} bytes would have to be kept aside"
            )
        self._touched.add(place)
        return found

    def _read(self, part: str, name: str) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        key = f"{name}.weight"
        try:
            with safe_open(self._files[part][key], "pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(key)
        except (OSError, KeyError, SafetensorError) as error:
            raise LoraFailed(f"{part}.{name} cannot be read again: {type(error).__name__}") from error
        return tensor.to(self.weights[part][name].dtype)


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a part, by its name in there."""
    from safetensors import SafetensorError, safe_open

    for index in folder.glob("*.safetensors.index.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            return {key: folder / name for key, name in json.loads(index.read_bytes())["weight_map"].items()}
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(OSError, SafetensorError), safe_open(path, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), path)
    return found


@contextlib.contextmanager
def _exact_matmul() -> Iterator[None]:
    """Without TF32, which has ten bits where float32 has 23, and which not every GPU has."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
