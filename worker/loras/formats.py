"""A LoRA file's tensors as pairs by part and layer, whatever trainer wrote them. Touches no model.

Names are brought into those of Diffusers' modules, by the pipeline class's own conversion where they are not already.
What is no pair of a down and an up matrix is refused by its name: a library would leave it aside in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers.utils import state_dict_utils
from peft.utils.other import get_pattern_key

from shared.errors import AdapterMisfit, InvalidAdapter
from shared.safetensors import said

Tensors = dict[str, torch.Tensor]
# By part, by layer: the matrix down to the rank, and the one up from it, with alpha / rank in it.
Pairs = dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]

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
_WRAPPERS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.")


def named(tensors: Tensors, metadata: Mapping[str, str], parts: Iterable[str]) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs by the names that they have in the file, and what belongs to none. `parts`: the first has no prefix.

    Raises AdapterMisfit for other kinds than LoRA, InvalidAdapter for half a layer.
    """
    for name in tensors:
        for mark, kind in _OTHER_KINDS.items():
            if re.search(mark, name):
                raise AdapterMisfit(f"it is {kind}, which cannot be used here: {said(name)}")
    tensors = _with_alpha(_unwrapped(tensors), metadata)
    return _paired(tensors, tuple(parts))


def converted(
    tensors: Tensors, metadata: Mapping[str, str], parts: Iterable[str], pipeline: Any
) -> tuple[Pairs, tuple[str, ...]]:
    """The same by the names that the pipeline's own class gives them. Raises AdapterMisfit where it knows none."""
    parts = tuple(parts)
    asked = {"unet_config": pipeline.unet.config} if "unet" in parts else {}
    try:
        # A copy: it takes tensors out of what it is handed.
        found = type(pipeline).lora_state_dict(dict(_with_alpha(tensors, metadata)), **asked)
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
    return _paired(renamed, parts)


def _by_modules(part: str, inside: Tensors) -> Tensors:
    """By the names of the part's modules; older files have those of attention processors."""
    if not inside:
        return {}
    if part.startswith("text_encoder"):
        known = state_dict_utils.convert_state_dict_to_diffusers(inside)
        return dict(state_dict_utils.convert_state_dict_to_peft(known))
    return dict(state_dict_utils.convert_unet_state_dict_to_peft(inside))


def _unwrapped(tensors: Tensors) -> Tensors:
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            return {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _halves(name: str) -> tuple[str, str] | None:
    """Of the down half of a layer its layer, and the name of the up half."""
    for down, up in _HALVES:
        if name.endswith(down):
            layer = name.removesuffix(down)
            return layer, layer + up
    return None


def _with_alpha(tensors: Tensors, metadata: Mapping[str, str]) -> Tensors:
    """With alpha / rank in each up matrix, in float32, and without alphas: conversions round them, or mix them up."""
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


def _written(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What Diffusers has written of the settings that a LoRA was trained with, by part."""
    try:
        written = json.loads(metadata.get(_METADATA, "{}"))
    except ValueError as error:
        raise InvalidAdapter(f"its {_METADATA} cannot be read") from error
    return written if isinstance(written, dict) else {}


def _scale(layer: str, rank: int, written: Mapping[str, Any]) -> float:
    """The scale of a layer without an alpha of its own: that of the settings, or 1 as Diffusers and PEFT have it."""
    part, _, name = layer.partition(".")
    alpha = written.get(f"{part}.lora_alpha")
    if not isinstance(alpha, int | float):
        return 1.0
    pattern = written.get(f"{part}.alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), name), alpha)
    return float(alpha) / (math.sqrt(rank) if written.get(f"{part}.use_rslora") else rank)


def _paired(tensors: Tensors, parts: tuple[str, ...]) -> tuple[Pairs, tuple[str, ...]]:
    pairs: Pairs = {}
    left = dict(tensors)
    for name in tensors:
        halves = _halves(name)
        if halves is None:
            continue
        layer, up = halves
        if up not in left:
            raise InvalidAdapter(f"{said(layer)} has one half of a layer only")
        part, inside = _part(layer, parts)
        pairs.setdefault(part, {})[inside] = (left.pop(name), left.pop(up))
    return pairs, tuple(left)


def _part(layer: str, parts: tuple[str, ...]) -> tuple[str, str]:
    """The part that a layer is of, and its name in there; a name that says no part is the first one's."""
    first, _, rest = layer.partition(".")
    if rest and (first in parts or re.fullmatch(r"unet|transformer|text_encoder(_\d)?", first)):
        return first, rest
    return parts[0], layer


def layers(pairs: Pairs) -> Iterator[tuple[str, str]]:
    """Each layer there is a pair for, as (part, name)."""
    return ((part, name) for part, inside in pairs.items() for name in inside)
