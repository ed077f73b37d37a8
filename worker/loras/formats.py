"""A LoRA file's tensors as pairs by layer, whatever trainer wrote them, and whose layers those are. Touches no model.

What is no pair of a down and an up matrix is refused by its name: a library would leave it aside in silence.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.utils import state_dict_utils

from shared.errors import AdapterMisfit, InvalidAdapter
from shared.safetensors import said

Tensors = dict[str, torch.Tensor]
# By layer: the matrix down to the rank, and the one up from it, with alpha / rank in it.
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]

# How the two matrices of a layer are named, behind its name. The longer endings come before those they end with.
_HALVES = (
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
_OTHER_KINDS = {
    r"\.dora_scale$|\.lora_magnitude_vector": "a DoRA",
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.oft_": "an OFT",
    r"\.lora_mid\.": "a LoCon in three parts",
    r"\.lora_embedding": "a LoRA of embeddings",
    r"\.lora_(B|up)\.bias$": "a LoRA with biases",
    r"\.diff(_b)?$": "a file of whole differences",
}
_METADATA = "lora_adapter_metadata"
# What trainers write before a layer's name, and the part it stands for; "" is the one that denoises.
_PARTS = {
    r"(base_model\.model\.)?(model\.)?diffusion_model\.": "",
    r"base_model\.model\.": "",
    r"(lora_(unet|transformer)|lycoris)_": "",
    r"lora_te1?_": "text_encoder",
    r"lora_te2_": "text_encoder_2",
    r"lora_te3_": "text_encoder_3",
}

# It would write hundreds of names into the log that somebody else has chosen.
logging.getLogger("diffusers.loaders.lora_conversion_utils").setLevel(logging.ERROR)


def paired(tensors: Tensors) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs by layer, and what belongs to none. Raises InvalidAdapter for half a layer."""
    pairs: Pairs = {}
    left = dict(tensors)
    for name in tensors:
        if (halves := _halves(name)) is None:
            continue
        layer, up = halves
        if up not in left:
            raise InvalidAdapter(f"{said(layer)} has one half of a layer only")
        pairs[layer] = (left.pop(name), left.pop(up))
    return pairs, tuple(left)


def converted(tensors: Tensors, parts: Iterable[str], pipeline: Any) -> Tensors:
    """The tensors by the names that the pipeline's own class gives them. Raises AdapterMisfit where it knows none."""
    asked = {"unet_config": pipeline.unet.config} if "unet" in parts else {}
    try:
        # A copy: it takes tensors out of what it is handed.
        found = type(pipeline).lora_state_dict(dict(tensors), **asked)
        state: Tensors = found[0] if isinstance(found, tuple) else found
        renamed: Tensors = {}
        for part in parts:
            inside = {
                name.removeprefix(f"{part}."): each for name, each in state.items() if name.startswith(f"{part}.")
            }
            renamed |= {f"{part}.{name}": tensor for name, tensor in _by_modules(part, inside).items()}
    except Exception as error:
        # What a conversion raises of a file that it was not made for: anything.
        raise AdapterMisfit(f"its layers are not named as this family's are: {type(error).__name__}") from error
    return renamed


def _by_modules(part: str, inside: Tensors) -> Tensors:
    """By the names of the part's modules; older files have those of attention processors."""
    if not inside:
        return {}
    if part.startswith("text_encoder"):
        known = state_dict_utils.convert_state_dict_to_diffusers(inside)
        return dict(state_dict_utils.convert_state_dict_to_peft(known))
    return dict(state_dict_utils.convert_unet_state_dict_to_peft(inside))


def scaled(tensors: Tensors, metadata: Mapping[str, str]) -> Tensors:
    """With alpha / rank in each up matrix, in float32, and without alphas: conversions round them, or mix them up.

    Raises AdapterMisfit for other kinds than LoRA.
    """
    for name in tensors:
        for mark, kind in _OTHER_KINDS.items():
            if re.search(mark, name):
                raise AdapterMisfit(f"it is {kind}, which cannot be used here: {said(name)}")
    found = dict(tensors)
    written = _written(metadata)
    for name, tensor in tensors.items():
        halves = _halves(name)
        if halves is None or halves[1] not in tensors or not tensor.ndim:
            continue
        layer, up = halves
        alpha = found.pop(f"{layer}.alpha", None)
        if alpha is not None and alpha.numel() != 1:
            raise InvalidAdapter(f"{said(layer)}.alpha is no number")
        rank = tensor.shape[0]
        scale = float(alpha) / max(rank, 1) if alpha is not None else _scale(layer, rank, written)
        if scale != 1.0:
            found[up] = tensors[up].float() * scale
    return found


def _halves(name: str) -> tuple[str, str] | None:
    """Of the down half of a layer its layer, and the name of the up half."""
    for down, up in _HALVES:
        if name.endswith(down):
            layer = name.removesuffix(down)
            return layer, layer + up
    return None


def _written(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What Diffusers has written of the settings that a LoRA was trained with, by part."""
    try:
        written = json.loads(metadata.get(_METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"its {_METADATA} cannot be read") from error
    return written if isinstance(written, dict) else {}


def _scale(layer: str, rank: int, written: Mapping[str, Any]) -> float:
    """The scale of a layer without an alpha of its own: that of the settings, or 1 as Diffusers and PEFT have it."""
    part, _, name = layer.partition(".")
    alpha = written.get(f"{part}.lora_alpha")
    pattern = written.get(f"{part}.alpha_pattern")
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        # As PEFT reads them, but as names: an expression of a stranger's may take for ever.
        known = str(key).removeprefix("^").removesuffix("$")
        if name == known or (not str(key).startswith("^") and name.endswith(f".{known}")):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        return 1.0
    return float(alpha) / (math.sqrt(rank) if written.get(f"{part}.use_rslora") is True else max(rank, 1))


class Names:
    """Whose layer a name in a file means, where names have dots, or underscores for dots, or an old spelling."""

    def __init__(self, layers: Mapping[str, Iterable[str]]) -> None:
        self._known = {part: frozenset(inside) for part, inside in layers.items()}
        self._flat = {part: {name.replace(".", "_"): name for name in inside} for part, inside in self._known.items()}
        self._main = next(iter(self._known), "")

    def find(self, layer: str) -> tuple[str, str | None]:
        """The part and the name in there of a layer; no name where that part has no such layer."""
        part, rest = self._part(layer)
        known, flat = self._known.get(part, frozenset()), self._flat.get(part, {})
        rest = rest.replace(".processor.", ".")
        # Files of text encoders are from before, or after, transformers took one level of them away.
        for name in (rest, f"{rest}.0", rest.removeprefix("text_model."), f"text_model.{rest}"):
            if name in known:
                return part, name
        for name in (rest, rest.removeprefix("text_model_"), f"text_model_{rest}"):
            if name in flat:
                return part, flat[name]
        return part, None

    def _part(self, layer: str) -> tuple[str, str]:
        for start, part in _PARTS.items():
            if found := re.match(start, layer):
                return part or self._main, layer[found.end() :]
        first, _, rest = layer.partition(".")
        if rest and (first in self._known or re.fullmatch(r"unet|transformer|text_encoder(_\d)?", first)):
            return first, rest
        return self._main, layer
