"""LoRAs beside the weights: PEFT's layers around those of a pipeline, and which of them are active, with which scale.

Base weights are never touched. An inactive one is skipped exactly: the picture is the base's, bit for bit. Scales are
set and never multiplied, as PEFT's own `set_scale` and the like would.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from worker.loras.checksum import Checksum, of_number
from worker.loras.fitting import Fitted, Layer, Slots, device_bytes

# Of each part the active LoRAs in their canonical order, by their hash, each with its scale.
Active = Mapping[str, tuple[tuple[str, float], ...]]


class Attached:
    """Those that are resident on the device, bounded by their bytes: the one used longest ago goes first."""

    def __init__(self, parts: dict[str, torch.nn.Module], slots: Slots, max_bytes: int) -> None:
        self._parts = parts
        self._slots = slots
        self._max_bytes = max_bytes
        self._layers: dict[str, dict[str, LoraLayer]] = {part: {} for part in parts}
        self._resident: OrderedDict[str, int] = OrderedDict()

    @property
    def bytes(self) -> int:
        """What the resident ones take on the device; may be asked from any thread."""
        return sum(list(self._resident.values()))

    @property
    def resident(self) -> tuple[str, ...]:
        """Their hashes, the one used longest ago first."""
        return tuple(self._resident)

    def activate(self, active: Active, loras: Mapping[str, Fitted]) -> None:
        """Have exactly these active; the ones that are not resident are attached from `loras` first."""
        used = [sha256 for each in active.values() for sha256, _ in each]
        for sha256 in dict.fromkeys(used):
            if sha256 not in self._resident:
                self._make_room(device_bytes(loras[sha256].layers, self._slots), used)
                try:
                    self._attach(loras[sha256])
                except BaseException:
                    self._detach(sha256)
                    raise
            self._resident.move_to_end(sha256)
        for part, layers in self._layers.items():
            scales = {_key(sha256): scale for sha256, scale in active.get(part, ())}
            keys = list(scales)
            for layer in layers.values():
                # PEFT's `set_adapter` would look at every resident one in every layer, for gradients that nobody wants.
                layer._active_adapter = keys
                for key in keys:
                    if key in layer.scaling:
                        layer.scaling[key] = scales[key]

    def detach_all(self) -> None:
        """Give all of them back."""
        self.activate({}, {})
        for sha256 in list(self._resident):
            self._detach(sha256)

    def checksums(self, checksum: Checksum) -> Iterator[int]:
        """Of what is active now, as the layers have it: each matrix, its scale and its place in the order."""
        for part, layers in self._layers.items():
            tensors: dict[tuple[str, torch.dtype, torch.device], list[torch.Tensor]] = {}
            for name, layer in sorted(layers.items()):
                for place, key in enumerate(layer.active_adapters):
                    if key not in layer.lora_A:
                        continue
                    yield of_number(f"{part} {name} {place} {key}", layer.scaling[key])
                    for half in (layer.lora_A[key].weight, layer.lora_B[key].weight):
                        tensors.setdefault((key, half.dtype, half.device), []).append(half)
            for (key, dtype, _), each in tensors.items():
                yield checksum.together(f"{part} {key} {dtype}", each)

    def _make_room(self, size: int, kept: Collection[str]) -> None:
        for sha256 in [each for each in self._resident if each not in kept]:
            if self.bytes + size <= self._max_bytes:
                return
            self._detach(sha256)

    def _attach(self, fitted: Fitted) -> None:
        key = _key(fitted.sha256)
        self._resident[fitted.sha256] = device_bytes(fitted.layers, self._slots)
        for part, layers in fitted.layers.items():
            known, config = self._layers[part], _config(layers)
            self._wrap(part, {name: layer for name, layer in layers.items() if name not in known}, key)
            # PEFT's injection goes through all layers for each one that is there already: in a large model, seconds.
            with torch.device("meta"):
                for name, layer in layers.items():
                    if key not in known[name].lora_A:
                        known[name].update_layer(key, layer.rank, lora_alpha=layer.rank, config=config)
            for name, layer in layers.items():
                self._fill(part, name, layer, key)

    def _wrap(self, part: str, layers: Mapping[str, Layer], key: str) -> None:
        """PEFT's layers around those that have none yet."""
        if not layers:
            return
        module = self._parts[part]
        try:
            inject_adapter_in_model(
                _config(layers),
                module,
                adapter_name=key,
                low_cpu_mem_usage=True,
                state_dict={f"{name}.lora_A.weight": layer.down for name, layer in layers.items()},
            )
        finally:
            # It is of use to nobody here, and PEFT warns of a second one.
            vars(module).pop("peft_config", None)
            # Also those of an attempt that has failed half-way: they have to be found to be cleared.
            found = {name: module.get_submodule(name) for name in layers}
            self._layers[part] |= {name: each for name, each in found.items() if isinstance(each, LoraLayer)}

    def _fill(self, part: str, name: str, layer: Layer, key: str) -> None:
        wrapper: Any = self._layers[part][name]
        device, dtype = wrapper.get_base_layer().weight.device, self._slots[part][name].dtype
        for half, tensor in ((wrapper.lora_A[key], layer.down), (wrapper.lora_B[key], layer.up)):
            # A copy in any case: what is in host memory is shared with whoever else uses this LoRA.
            weight = torch.empty(tensor.shape, device=device, dtype=dtype).copy_(tensor)
            half.weight = torch.nn.Parameter(weight, requires_grad=False)

    def _detach(self, sha256: str) -> None:
        key = _key(sha256)
        for layers in self._layers.values():
            for layer in layers.values():
                # PEFT would have another one active in place of an active one that goes.
                layer._active_adapter = [each for each in layer.active_adapters if each != key]
                layer.delete_adapter(key)
        self._resident.pop(sha256, None)


def _key(sha256: str) -> str:
    """A name that PEFT takes for one of its modules."""
    return f"lora_{sha256[:32]}"


def _config(layers: Mapping[str, Layer]) -> LoraConfig:
    """For exactly these layers: a list of names would also match each longer name that ends like one of them."""
    by_rank: dict[int, list[str]] = {}
    for name, layer in layers.items():
        by_rank.setdefault(layer.rank, []).append(re.escape(name))
    [(most, _)] = Counter(layer.rank for layer in layers.values()).most_common(1)
    return LoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern={f"^(?:{'|'.join(names)})": rank for rank, names in by_rank.items() if rank != most},
        target_modules=f"(?:{'|'.join(re.escape(name) for name in layers)})",
        init_lora_weights=False,
        inference_mode=True,
    )
