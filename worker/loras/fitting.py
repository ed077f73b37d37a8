"""Whether a LoRA fits a pipeline, decided by names and shapes before the pipeline is touched.

The layers of a pipeline are listed once, when it is loaded; what is asked later needs the list only, so that it may be
asked from any thread.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch

from shared.errors import AdapterMisfit, InvalidAdapter
from shared.loras import Adapter
from shared.messages import Match
from shared.safetensors import said
from worker.loras import formats, shelf

_NAMES_TOLD = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """A Linear or Conv2d of a pipeline; `shape` is (out, in) or (out, in, height, width) of its kernel.

    To one that is quantized LoRAs can be attached, and not added.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    quantized: bool

    def fitted(self, down: torch.Tensor, up: torch.Tensor) -> Layer | None:
        """The two matrices in the shapes of this layer, or None if they do not fit."""
        rank = down.shape[0] if down.ndim else 0
        kernel = self.shape[2:]
        # Some trainers write a Linear as a convolution of one by one, and some the other way round.
        inner, ones = (rank, *self.shape[1:]), (1,) * len(kernel)
        if rank < 1 or down.numel() != rank * inputs(self.shape) or down.shape[1] != self.shape[1]:
            return None
        if up.numel() != self.shape[0] * rank or tuple(up.shape[:2]) != (self.shape[0], rank):
            return None
        return Layer(down.reshape(inner).contiguous(), up.reshape(self.shape[0], rank, *ones).contiguous())


@dataclass(frozen=True, slots=True)
class Layer:
    """What a LoRA does to one layer: `down` (rank, in, ...) and `up` (out, rank, ...), with alpha / rank in it."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def bytes(self) -> int:
        return int(self.down.nbytes + self.up.nbytes)


def inputs(shape: tuple[int, ...]) -> int:
    """How many numbers of its input each output of a layer sees."""
    return math.prod(shape[1:])


# By part, by layer.
Slots = dict[str, dict[str, Slot]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A LoRA in host memory, by part and layer, with the names that the pipeline has no layer for."""

    sha256: str
    layers: dict[str, dict[str, Layer]]
    unmatched: dict[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        """How many layers it changes."""
        return sum(len(inside) for inside in self.layers.values())

    @property
    def bytes(self) -> int:
        """What it takes in host memory."""
        return sum(layer.bytes for inside in self.layers.values() for layer in inside.values())

    def within(self, target: str) -> dict[str, dict[str, Layer]]:
        """The layers of the parts that this target names."""
        return {part: inside for part, inside in self.layers.items() if target in ("all", part)}


def slots_of(parts: dict[str, torch.nn.Module]) -> Slots:
    """Every layer that a LoRA may touch, before any was attached."""
    return {part: dict(_slots(module)) for part, module in parts.items()}


def _slots(module: torch.nn.Module) -> Any:
    for name, layer in module.named_modules():
        kernel: tuple[int, ...]
        if isinstance(layer, torch.nn.Linear):
            shape: tuple[int, ...] = (layer.out_features, layer.in_features)
        elif isinstance(layer, torch.nn.Conv2d) and layer.groups == 1:
            kernel = tuple(layer.kernel_size)
            shape = (layer.out_channels, layer.in_channels, *kernel)
        else:
            continue
        weight = layer.weight
        plain = type(weight) is torch.nn.Parameter and weight.is_floating_point() and weight.dtype.itemsize > 1
        dtype = weight.dtype if plain else getattr(layer, "compute_dtype", None) or torch.bfloat16
        yield name, Slot(shape, dtype, weight.nbytes, not plain or tuple(weight.shape) != shape)


def fit(content: shelf.Content, sha256: str, pipeline: Any, slots: Slots) -> Fitted:
    """The LoRA of a file, matched with the layers of a pipeline. Raises AdapterMisfit or InvalidAdapter, saying why."""
    from safetensors.torch import load

    tensors = formats.scaled(load(content.data), content.header.metadata)
    names = formats.Names(slots)
    fitted = _matched(tensors, names, sha256, slots)
    if fitted.unmatched:
        with contextlib.suppress(AdapterMisfit):
            # By names of its own, which its family's class may know.
            renamed = formats.converted(tensors, slots, pipeline)
            other = _matched(renamed, names, sha256, slots)
            if other.count > fitted.count:
                return other
    return fitted


def _matched(tensors: formats.Tensors, names: formats.Names, sha256: str, slots: Slots) -> Fitted:
    pairs, left = formats.paired(tensors)
    layers: dict[str, dict[str, Layer]] = {}
    unmatched: dict[str, tuple[str, ...]] = {"": left} if left else {}
    for named, (down, up) in pairs.items():
        part, name = names.find(named)
        if name is None:
            unmatched[part] = (*unmatched.get(part, ()), named)
            continue
        if name in layers.get(part, {}):
            raise InvalidAdapter(f"{said(named)} is there twice")
        layer = slots[part][name].fitted(down, up)
        if layer is None:
            raise AdapterMisfit(
                f"it is another family's: {said(named)} takes {list(slots[part][name].shape)}, "
                f"and not {list(up.shape)} by {list(down.shape)}"
            )
        layers.setdefault(part, {})[name] = layer
    return Fitted(sha256, layers, unmatched)


def match(adapter: Adapter, fitted: Fitted, slots: Slots) -> Match:
    """What this adapter would change. Raises AdapterMisfit where that is nothing, or little of what it was made for."""
    if adapter.target != "all" and adapter.target not in slots:
        raise AdapterMisfit(f"{adapter.name}: this model has no {adapter.target} that takes LoRAs")
    within = fitted.within(adapter.target)
    names = [name for part, missing in fitted.unmatched.items() if adapter.target in ("all", part) for name in missing]
    if not within:
        raise AdapterMisfit(f"{adapter.name} changes nothing here: it has no layer of {', '.join(slots)}")
    for part, inside in within.items():
        # What was trained beside it for text encoders that take none here says nothing of its family.
        strange = [each for each in fitted.unmatched if each not in slots and not each.startswith("text_encoder")]
        if len(inside) < sum(len(fitted.unmatched.get(each, ())) for each in (part, *strange)):
            raise AdapterMisfit(f"{adapter.name} is another family's: most of its layers are not in this {part}")
    return Match(
        sha256=adapter.sha256,
        matched={part: len(inside) for part, inside in within.items()},
        unmatched=len(names),
        unmatched_names=tuple(said(name) for name in sorted(names)[:_NAMES_TOLD]),
        bytes=device_bytes(within, slots),
    )


def device_bytes(layers: dict[str, dict[str, Layer]], slots: Slots) -> int:
    """What these layers take where they are attached, each in the type of its base."""
    return sum(
        (layer.down.numel() + layer.up.numel()) * slots[part][name].dtype.itemsize
        for part, inside in layers.items()
        for name, layer in inside.items()
    )
