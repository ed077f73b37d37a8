"""What the header of a LoRA file tells: its family by what was written down, by shapes, by names; and no more."""

from __future__ import annotations

import json
import random

import pytest

from gateway.loras.inspection import ModelOption, inspect
from shared.safetensors import MAX_TENSORS, Header, Tensor

Shape = tuple[int, ...]


def header(keys: dict[str, Shape], metadata: dict[str, str] | None = None) -> Header:
    return Header({key: Tensor("F32", shape, 0, 0) for key, shape in keys.items()}, metadata or {}, 100, 12_345)


def pair(layer: str, rank: int = 4, width: int = 320) -> dict[str, Shape]:
    return {f"{layer}.lora_A.weight": (rank, width), f"{layer}.lora_B.weight": (width, rank)}


KLEIN = pair("transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj") | pair(
    "transformer.transformer_blocks.0.attn.to_q"
)


def test_a_file_is_described() -> None:
    found = inspect(header(KLEIN, {"trigger_words": "ink, wash;ink\nbrush", "note": "x"}))
    assert found.size_bytes == 12_345
    assert (found.key_count, found.rank) == (4, 4)
    assert found.detected_modules == ("transformer",)
    assert found.targets == ("to_q", "to_qkv_mlp_proj")
    assert (found.family_guess, found.confidence) == ("flux2-klein", 0.9)
    assert found.trigger_words == ("ink", "wash", "brush")
    assert found.default_strength_suggestion == 1.0
    assert found.metadata == {"trigger_words": "ink, wash;ink\nbrush", "note": "x"}
    assert found.warnings == ()
    models = [
        ModelOption("a", "flux2-klein", "diffusion"),
        ModelOption("b", "sdxl", "stub"),
        ModelOption("c", "", "stub"),
    ]
    assert found.suggested(models) == ["a"]


UNET = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("keys", "metadata", "family", "modules"),
    [
        (pair(UNET, width=2048), {}, "sdxl", ("unet",)),
        (pair(UNET, width=768), {}, "sd15", ("unet",)),
        ({f"{KOHYA}.lora_down.weight": (4, 768), f"{KOHYA}.lora_up.weight": (320, 4)}, {}, "sd15", ("unet",)),
        (pair("unet.mid_block.attentions.0.proj_in"), {}, "sdxl", ("unet",)),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), {}, "sdxl", ("text_encoder_2",)),
        (
            pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj") | pair(UNET, width=2048),
            {},
            "sdxl",
            ("text_encoder", "unet"),
        ),
        (pair("diffusion_model.layers.3.attention.to_q"), {}, "z-image", ("transformer",)),
        (pair("transformer.transformer_blocks.0.img_mlp.net.2"), {}, "qwen-image", ("transformer",)),
        (pair("transformer.single_transformer_blocks.0.proj_mlp"), {}, "flux1", ("transformer",)),
        (pair("transformer.something.to_q"), {}, "", ("transformer",)),
        (pair("transformer.something.to_q"), {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl", ("transformer",)),
        (pair("x"), {"modelspec.architecture": "flux-2-klein-4b/lora"}, "flux2-klein", ()),
        (pair("x"), {"modelspec.architecture": "Flux-1-dev/lora"}, "flux1", ()),
        (pair("x"), {"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15", ()),
        (pair("x"), {"base_model": "Tongyi-MAI/Z-Image-Turbo"}, "z-image", ()),
        (pair("x"), {"base_model": "Qwen/Qwen-Image-Edit"}, "qwen-image", ()),
    ],
)
def test_whose_it_is(keys: dict[str, Shape], metadata: dict[str, str], family: str, modules: tuple[str, ...]) -> None:
    found = inspect(header(keys, metadata))
    assert (found.family_guess, found.detected_modules) == (family, modules)
    assert (found.confidence > 0) == bool(family)
    assert any("family" in each for each in found.warnings) == (not family)


@pytest.mark.parametrize(
    ("layer", "target"),
    [
        ("transformer.blocks.0.attn.to_out.0", "to_out.0"),
        ("unet.down_blocks.0.ff.net.2", "net.2"),
        ("unet.to_q_lora", "to_q"),
    ],
)
def test_what_it_changes_is_named_without_numbers_of_blocks(layer: str, target: str) -> None:
    assert inspect(header(pair(layer))).targets == (target,)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"trigger_word": "ink"}, ("ink",)),
        ({"trainedWords": '["a b", "c", 3, ""]'}, ("a b", "c")),
        ({"trained_words": "[broken"}, ("[broken",)),
        ({"trigger_words": " , ;\n"}, ()),
        ({"ss_trigger_words": "a\x00\x1bb"}, ("a b",)),
        ({"trigger_words": "", "trigger_word": "second"}, ("second",)),
        ({"trigger_words": "[" * 100_000}, None),
    ],
)
def test_trigger_words(metadata: dict[str, str], words: tuple[str, ...] | None) -> None:
    found = inspect(header(KLEIN, metadata)).trigger_words
    assert words is None or found == words
    assert all(len(word) <= 128 for word in found)


@pytest.mark.parametrize(
    ("metadata", "strength"), [({"default_strength": "0.8"}, 0.8), ({"preferred_weight": "9"}, 1.0), ({}, 1.0)]
)
def test_a_strength_that_is_written_down_is_suggested(metadata: dict[str, str], strength: float) -> None:
    assert inspect(header(KLEIN, metadata)).default_strength_suggestion == strength


def test_what_is_odd_is_said() -> None:
    mixed = pair("transformer.a.to_q", 4) | pair("transformer.a.to_k", 16)
    odd = {"lora_unet_x.hada_w1_a": (4, 4), "lora_unet_x.dora_scale": (4,)}
    assert any("ranks from 4 to 16" in each for each in inspect(header(mixed)).warnings)
    assert inspect(header(mixed)).rank == 16
    warnings = inspect(header(odd)).warnings
    assert any("No tensor is named as those of a LoRA" in each for each in warnings)
    assert any("dora_scale, hada_" in each for each in warnings)


def test_what_is_shown_is_bounded() -> None:
    keys = {f"{'x' * 500}{number}.lora_A.weight": (4, 4) for number in range(MAX_TENSORS)}
    metadata = {f"key{number}": "v" * 5000 for number in range(500)} | {"trigger_words": "w," * 100_000}
    found = inspect(header(keys, metadata))
    assert any("in part" in each for each in found.warnings)
    shown = json.dumps([found.metadata, found.targets, found.trigger_words, found.warnings])
    assert len(shown) < 100_000


def test_nothing_that_a_header_may_say_raises() -> None:
    rng = random.Random(7)
    letters = 'abAB01._/ \x00é[]{}",:' + "lora_A.weight lora_down unet."
    for _ in range(2000):
        ends = ("", ".lora_A.weight", ".lora_down.weight")
        names = ["".join(rng.choices(letters, k=rng.randint(1, 40))) + rng.choice(ends) for _ in range(5)]
        keys = {name: tuple(rng.choices([0, 1, 4, 768], k=rng.randint(0, 3))) for name in names}
        said = ("trigger_words", "default_strength", "modelspec.architecture", "x")
        metadata = {name: "".join(rng.choices(letters, k=20)) for name in said}
        assert 0 <= inspect(header(keys, metadata)).confidence <= 1
