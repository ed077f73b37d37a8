"""Tiny random Diffusers pipelines, written as folders: the real classes with next to no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.embedded import MANIFEST, Defaults, File, Manifest, Preview, Sizes, Vocabulary

_TEMPLATE = "<|im_start|>{% for message in messages %}{{ message['content'] }}{% endfor %}"


def manifest(multiples: tuple[int, ...], steps: int = 2, files: tuple[File, ...] = ()) -> Manifest:
    """A manifest of a model of 64x64 that `klein` makes."""
    return Manifest(
        name="tiny",
        pipeline="Flux2KleinPipeline",
        licence="Apache-2.0",
        cpu_dtype="float32",
        defaults=Defaults(steps=steps, guidance=1.5, max_sequence_length=16, text_encoder_out_layers=(1, 2, 3)),
        sizes=Sizes(native=((64, 64),), multiples=multiples, resample="nearest"),
        preview=Preview(latent="", matrix=(), offset=(0, 0, 0), r2=0),
        vocabulary=Vocabulary(
            shapes=("circle",), colours={"red": (255, 0, 0)}, positions=("top",), sizes=("small",), edits=(), unsaid={}
        ),
        training={},
        figures={},
        files=files,
    )


def klein(folder: Path, said: Manifest | None = None, seed: int = 0) -> Path:
    """A random FLUX.2-klein in `folder`, with a manifest if one is given.

    Its text tower has the 28 layers that the pipeline's own defaults ask for. Two with equal seeds are equal.
    """
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=64,
            mid_block_add_attention=False,
        )
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=28,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=512,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        transformer = Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        )
        # Zeros at birth, from which every picture would be the same noise whatever the prompt.
        for parameter in transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False)
    Flux2KleinPipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(folder)
    if said is not None:
        (folder / MANIFEST).write_text(said.model_dump_json(), encoding="utf-8")
    return folder


def _tokenizer() -> Any:
    """One token a byte, and the two special ones that a chat template needs."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = ["<|endoftext|>", "<|im_start|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        vocab={letter: place for place, letter in enumerate(letters)},
        merges=[],
        additional_special_tokens=["<|im_start|>"],
        padding_side="right",
        model_max_length=512,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
