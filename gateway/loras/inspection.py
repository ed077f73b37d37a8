"""What a LoRA file is, as far as its header tells: its parts, its rank, whose family it is, and how sure that is.

The shape is image-pool's, with rank and targets beside it. Pure; not a byte of the weights is looked at.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.safetensors import Header, Tensor, said

Module = str

_MOST_SHOWN = 64
_MOST_LETTERS = 2000
_MOST_METADATA = 32_768
_MOST_WORDS = 64
_WORD_LETTERS = 128
_DOWN = re.compile(r"\.?(lora_A|lora_down|lora\.down|lora_linear_layer\.down)(\.default)?\.weight$|\.lora_A$")
_UP = re.compile(r"\.?(lora_B|lora_up|lora\.up|lora_linear_layer\.up)(\.default)?\.weight$|\.lora_B$")
# Other ways to change weights, which share the suffix and not the arithmetic.
_FOREIGN = re.compile(r"hada_|lokr_|oft_|dora_scale|\.diff(_b)?$|lora_mid|on_input$")
_WORD_KEYS = ("trigger_words", "trigger_word", "ss_trigger_words", "trained_words", "trainedWords")
_STRENGTH_KEYS = ("default_strength", "recommended_strength", "preferred_weight")
# Which part of a pipeline a key is about, by how it begins: first as Diffusers writes it, then as Kohya does.
_MODULES = (
    ("text_encoder_2", re.compile(r"text_encoder_2\.|lora_te2_")),
    ("text_encoder", re.compile(r"text_encoder\.|lora_te1?_")),
    (
        "unet",
        re.compile(
            r"unet\.|lora_unet_(down|mid|up|input|middle|output)_?blocks?_|down_blocks\.|up_blocks\.|mid_block\."
        ),
    ),
    ("transformer", re.compile(r"(base_model\.model\.)?(transformer|diffusion_model)\.|lora_unet_|lora_transformer_")),
    ("transformer", re.compile(r"(single_)?transformer_blocks\.|layers\.\d|double_blocks\.|single_blocks\.")),
)
# What trainers write down of the base, and the families that it means, in the order in which they are looked for.
_DECLARED_KEYS = ("modelspec.architecture", "ss_base_model_version", "base_model", "ss_sd_model_name", "family")
_DECLARED = (
    ("flux2-klein", re.compile(r"flux[-_. ]?2")),
    ("flux1", re.compile(r"flux")),
    ("z-image", re.compile(r"z[-_ ]?image")),
    ("qwen-image", re.compile(r"qwen[-_ ]?image")),
    ("sd3", re.compile(r"sd3|stable-diffusion-(v)?3")),
    ("sdxl", re.compile(r"sdxl|stable-diffusion-xl|sd_xl|pony|illustrious")),
    ("sd15", re.compile(r"sd_?v?1|stable-diffusion-v1|sd15")),
)
# What only this family's layers are called, most telling first.
_KEYS = (
    ("flux2-klein", 0.9, re.compile(r"to_qkv_mlp_proj|double_stream_modulation|single_stream_modulation")),
    ("z-image", 0.85, re.compile(r"noise_refiner|context_refiner|cap_embedder|layers[._]\d+[._]attention[._]")),
    ("qwen-image", 0.85, re.compile(r"transformer_blocks[._]\d+[._](img|txt)_m(lp|od)")),
    ("flux1", 0.75, re.compile(r"single_transformer_blocks[._]\d+[._](proj_mlp|attn[._]to_q)|double_blocks")),
    ("sdxl", 0.85, re.compile(r"text_encoder_2|lora_te2_")),
)
# How wide the text is that a U-Net looks at.
_WIDTHS = {768: ("sd15", 0.9), 2048: ("sdxl", 0.9)}
_TEXT_KEYS = re.compile(r"attn2[._]to_[kv][._]")


@dataclass(frozen=True, slots=True)
class ModelOption:
    """A model that is served here: its family is empty while no replica has said it."""

    id: str
    family: str
    backend: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file says of itself. `rank` is the largest; `targets` are the kinds of layers that it changes."""

    size_bytes: int
    metadata: Mapping[str, str]
    key_count: int
    detected_modules: tuple[Module, ...]
    family_guess: str
    confidence: float
    rank: int
    targets: tuple[str, ...]
    trigger_words: tuple[str, ...]
    default_strength_suggestion: float
    warnings: tuple[str, ...]

    def suggested(self, models: Iterable[ModelOption]) -> list[str]:
        """Those of these models that it may fit."""
        return [m.id for m in models if m.family and m.family == self.family_guess]


def inspect(header: Header) -> Inspection:
    """What this header says. Never raises: what it cannot tell is empty, and said among the warnings."""
    downs = {key: tensor for key, tensor in header.tensors.items() if _DOWN.search(key)}
    ranks = Counter(tensor.shape[0] for tensor in downs.values() if tensor.shape)
    guess, confidence = _family(header)
    words = _words(header.metadata)
    metadata, shortened = _shown(header.metadata)
    warnings = []
    if not downs or not any(_UP.search(key) for key in header.tensors):
        warnings.append("No tensor is named as those of a LoRA are.")
    if foreign := sorted({match[0] for key in header.tensors if (match := _FOREIGN.search(key))}):
        warnings.append(f"It has tensors of another method than LoRA: {', '.join(foreign[:8])}.")
    if len(ranks) > 1:
        warnings.append(f"Its layers have ranks from {min(ranks)} to {max(ranks)}.")
    if not guess:
        warnings.append("Which family of models it is for cannot be told.")
    if not words:
        warnings.append("It names no trigger words.")
    if shortened:
        warnings.append("Its metadata is shown in part.")
    return Inspection(
        size_bytes=header.size,
        metadata=metadata,
        key_count=len(header.tensors),
        detected_modules=_modules(header.tensors),
        family_guess=guess,
        confidence=confidence,
        rank=max(ranks, default=0),
        targets=_targets(downs),
        trigger_words=words,
        default_strength_suggestion=_strength(header.metadata),
        warnings=tuple(warnings),
    )


def _modules(keys: Iterable[str]) -> tuple[Module, ...]:
    found = {next((name for name, pattern in _MODULES if pattern.match(key)), "") for key in keys}
    return tuple(sorted(found - {""}))


def _targets(downs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The last names of the layers that are changed, `to_q` and `ff.net.0.proj` without the blocks' numbers."""
    names = set()
    for key in downs:
        layer = _DOWN.sub("", key).replace("_lora", "")
        parts = [part for part in layer.split(".") if part]
        # A list of layers is a name and a number.
        kept = parts[-2:] if parts and parts[-1].isdigit() else parts[-1:]
        names.add(said(".".join(kept)))
    return tuple(sorted(names)[:_MOST_SHOWN])


def _family(header: Header) -> tuple[str, float]:
    for key in _DECLARED_KEYS:
        text = header.metadata.get(key, "")[:_MOST_LETTERS].lower()
        for family, pattern in _DECLARED:
            if pattern.search(text):
                return family, 0.95
    for key, tensor in header.tensors.items():
        if _TEXT_KEYS.search(key) and _DOWN.search(key) and tensor.shape[-1:] and tensor.shape[-1] in _WIDTHS:
            return _WIDTHS[tensor.shape[-1]]
    for family, confidence, pattern in _KEYS:
        if any(pattern.search(key) for key in header.tensors):
            return family, confidence
    return ("sdxl", 0.5) if "unet" in _modules(header.tensors) else ("", 0.0)


def _words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    for key in _WORD_KEYS:
        text = metadata.get(key, "")[: _MOST_WORDS * _WORD_LETTERS]
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            listed = None
        parts = (
            [each for each in listed if isinstance(each, str)]
            if isinstance(listed, list)
            else re.split(r"[,;\n]", text)
        )
        words = dict.fromkeys(_line(part, _WORD_LETTERS) for part in parts if part.strip())
        if words:
            return tuple(words)[:_MOST_WORDS]
    return ()


def _strength(metadata: Mapping[str, str]) -> float:
    for key in _STRENGTH_KEYS:
        if re.fullmatch(r"[01](\.\d{1,6})?|2(\.0{1,6})?", text := metadata.get(key, "")):
            return float(text)
    return 1.0


def _shown(metadata: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """As much of it as may be shown, and whether that is not all."""
    shown: dict[str, str] = {}
    left = _MOST_METADATA
    for key, value in sorted(metadata.items(), key=lambda item: len(item[1])):
        name, text = _line(key, 256), value[:_MOST_LETTERS]
        left -= len(name) + len(text)
        if left < 0:
            break
        shown[name] = text
    return shown, shown != dict(metadata)


def _line(text: str, most: int) -> str:
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()[:most]
