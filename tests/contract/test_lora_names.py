"""LoRAs of the trainers that keep to a model's first release: by its names, with what Diffusers has split in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.adapters import Halves, drawn, packed, peft, shelved
from tests.contract.lora_rooms import BUILDERS, Replica

pytestmark = pytest.mark.model
# Of each family some layers, and how kohya's scripts name them.
NAMES = {
    "klein": {
        "transformer_blocks.0.attn.to_out.0": "lora_unet_double_blocks_0_img_attn_proj",
        "transformer_blocks.0.ff.linear_in": "lora_unet_double_blocks_0_img_mlp_0",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj": "lora_unet_single_blocks_0_linear1",
        "x_embedder": "lora_unet_img_in",
    },
    "sdxl": {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
        ),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_out_0"
        ),
        "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_ff_net_2"
        ),
    },
    "zimage": {
        "layers.0.attention.to_out.0": "lora_unet_layers_0_attention_out",
        "layers.1.feed_forward.w2": "lora_unet_layers_1_feed_forward_w2",
    },
}
# Three layers that read the same, written as one.
FUSED = {
    "klein": ([f"transformer_blocks.0.attn.to_{x}" for x in "qkv"], "lora_unet_double_blocks_0_img_attn_qkv"),
    "zimage": ([f"layers.0.attention.to_{x}" for x in "qkv"], "lora_unet_layers_0_attention_qkv"),
}
ALPHA = 2.0


@pytest.mark.parametrize("family", NAMES)
def test_layers_are_found_by_the_names_of_the_first_release(tmp_path: Path, family: str) -> None:
    one = Replica(BUILDERS[family](tmp_path / family), tmp_path)
    main, slots = next(iter(one.backend._loras._slots.items()))
    names = NAMES[family]
    halves: Halves = drawn({main: {name: slots[name].shape for name in names}})
    written = {names[name]: pair for (_, name), pair in halves.items()}
    if family in FUSED:
        layers, fused = FUSED[family]
        # Three parts of one matrix up, from one matrix down, of a rank that is no multiple of three.
        split = drawn({main: {name: slots[name].shape for name in layers}})
        [down, *_] = [down for down, _ in split.values()]
        split = {place: (down, up) for place, (_, up) in split.items()}
        halves |= split
        written[fused] = (down, np.concatenate([up for _, up in split.values()]))
    tensors = {}
    for name, (down, up) in written.items():
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up * (down.shape[0] / np.float32(ALPHA))
        tensors[f"{name}.alpha"] = np.float32(ALPHA).reshape(())
    [match] = one.prepare(shelved(tmp_path, packed(tensors)))
    assert (match.matched, match.unmatched) == ({main: len(halves)}, 0)
    assert one.adopt(shelved(tmp_path, packed(tensors)), mode="merged") != one.adopt()
    merged = one.adopt(shelved(tmp_path, packed(tensors)), mode="merged")
    assert merged == one.adopt(shelved(tmp_path, peft(halves)), mode="merged")
    one.close()
