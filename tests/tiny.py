"""Tiny random Diffusers pipelines, written as folders: the real classes with next to no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.embedded import MANIFEST, Defaults, File, Manifest, Preview, Sizes, Vocabulary

# Of every autoencoder: eight pixels a latent, and as little as there can be behind each.
_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_size": 64,
}
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
    from transformers import Qwen3ForCausalLM

    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLFlux2(
            **_VAE,
            latent_channels=4,
            mid_block_add_attention=False,
        )
        text_encoder = Qwen3ForCausalLM(_qwen(tokenizer, layers=28))
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


def sdxl(folder: Path, seed: int = 0) -> Path:
    """A random SDXL in `folder`. Two with equal seeds are equal."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=32 + 6 * 8,
            cross_attention_dim=64,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            **_VAE,
            latent_channels=4,
            force_upcast=False,
        )
        encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    StableDiffusionXLPipeline(
        vae,
        *encoders,
        tokenizer,
        tokenizer,
        unet,
        EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def zimage(folder: Path, seed: int = 0) -> Path:
    """A random Z-Image in `folder`. Two with equal seeds are equal."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Model

    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        )
        # Made without values: what memory held is no weight.
        for parameter in transformer.parameters():
            if parameter.ndim < 2 or not parameter.isfinite().all() or not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        text_encoder = Qwen3Model(_qwen(tokenizer, layers=2))
        vae = AutoencoderKL(
            **_VAE,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ZImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(folder)
    return folder


def _qwen(tokenizer: Any, layers: int) -> Any:
    """A text tower of so many layers."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def _clip_tokenizer() -> Any:
    """One token a byte, as CLIP has them: those at the end of a word are others."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={name: place for place, name in enumerate(names)}, merges=[], model_max_length=77)


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
