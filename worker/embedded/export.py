"""Puts the trained parts together as a pipeline and writes it as a folder with its manifest."""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from worker.embedded import (
    MANIFEST,
    Defaults,
    File,
    Manifest,
    Preview,
    Sizes,
    Vocabulary,
    data,
    dit,
    evaluate,
    text,
    vae,
)

LARGEST_BYTES = 15_000_000


@dataclass(frozen=True)
class Parts:
    """What the image model stands on: trained before it, rounded to bfloat16 and not changed any more."""

    vae: AutoencoderKLFlux2
    tower: Qwen3ForCausalLM
    tokenizer: Qwen2Tokenizer

    def pipeline(self, transformer: Flux2Transformer2DModel) -> Flux2KleinPipeline:
        """The whole pipeline around an image model; shares the modules."""
        scheduler = FlowMatchEulerDiscreteScheduler(shift=dit.SHIFT, use_dynamic_shifting=False)
        pipeline = Flux2KleinPipeline(scheduler, self.vae, self.tower, self.tokenizer, transformer.eval())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load(folder: Path, dtype: torch.dtype) -> Flux2KleinPipeline:
    """The exported pipeline, offline."""
    pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(
    out: Path, parts: Parts, training: dit.Training, seed: int, log: Callable[[str], None], cases: int = 200
) -> None:
    """Writes the pipeline in bfloat16, reads it back, measures it, adds the manifest, and only then replaces `out`."""
    temporary = out.with_name(f".{out.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    transformer = dit.build()
    transformer.load_state_dict(training.average.state_dict())
    whole = Parts(_copy(parts.vae, vae.build()), parts.tower, parts.tokenizer).pipeline(transformer).to(torch.bfloat16)
    whole.save_pretrained(temporary)
    for path in temporary.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes for the owner alone
    parts.tower.float()  # the tower is shared with the caller
    timings = {
        name: _seconds(temporary, dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    # Only for a clear gain: processors without bfloat16 arithmetic are many times slower in it.
    best = "bfloat16" if timings["bfloat16"] < 0.75 * timings["float32"] else "float32"
    log(f"one picture, one core: {timings}")
    pipeline = load(temporary, getattr(torch, best))
    figures = {
        "cases": cases,
        "held_out": evaluate.figures(pipeline, cases, seed=2026),
        "held_out_512": evaluate.figures(pipeline, cases, seed=2026, enlarge=8),
        "held_out_bfloat16": evaluate.figures(load(temporary, torch.bfloat16), cases, seed=2026),
        "edits_50": evaluate.edit_figures(pipeline, 50, seed=2026),
        "seconds_per_picture_one_core": {k: round(v, 3) for k, v in timings.items()},
        "vae_psnr_db": round(vae.psnr(parts.vae, vae.pictures(256, seed + 77, frozenset())), 2),
    }
    log(f"figures: {figures}")
    manifest = Manifest(
        name=out.name,
        pipeline="Flux2KleinPipeline",
        licence="Apache-2.0",
        cpu_dtype=best,
        defaults=Defaults(
            steps=evaluate.STEPS,
            guidance=evaluate.GUIDANCE,
            max_sequence_length=text.LENGTH,
            text_encoder_out_layers=text.OUT_LAYERS,
        ),
        sizes=Sizes(
            native=((data.SIDE, data.SIDE),), multiples=tuple(range(1, 1024 // data.SIDE + 1)), resample="nearest"
        ),
        preview=preview(parts.vae),
        vocabulary=_vocabulary(),
        training=_training(training, seed),
        figures=figures,
        files=_files(temporary),
    )
    (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    total = sum(file.bytes for file in manifest.files)
    if total > LARGEST_BYTES:
        raise ValueError(f"{total} bytes of model; at most {LARGEST_BYTES} are packed")
    _replace(temporary, out)
    log(f"exported {total} bytes to {out}")


def _replace(new: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _copy(source: torch.nn.Module, into: torch.nn.Module) -> torch.nn.Module:
    into.load_state_dict(source.state_dict())
    return into


def _seconds(folder: Path, dtype: torch.dtype) -> float:
    """Wall seconds of a native picture at the defaults on one core, the fastest of five."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = load(folder, dtype)
    taken = []
    for seed in range(5):
        begun = time.perf_counter()
        evaluate.draw(pipeline, ["a red circle on a blue background"], seed)
        taken.append(time.perf_counter() - begun)
    torch.set_num_threads(threads)
    return min(taken)


@torch.no_grad()
def preview(autoencoder: AutoencoderKLFlux2) -> Preview:
    """The least-squares map from latents to RGB, fitted on pictures of training kind."""
    images = vae.pictures(512, 5, frozenset())
    device = next(autoencoder.parameters()).device
    latents = torch.cat([autoencoder.encode(part.to(device)).latent_dist.mode().cpu() for part in images.split(64)])
    small = torch.nn.functional.avg_pool2d(images / 2 + 0.5, images.shape[-1] // latents.shape[-1])
    known = latents.permute(0, 2, 3, 1).reshape(-1, vae.CHANNELS).double()
    known = torch.cat([known, torch.ones(len(known), 1, dtype=torch.float64)], 1).numpy()
    wanted = small.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    solution = np.linalg.lstsq(known, wanted, rcond=None)[0]
    left = ((known @ solution - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    return Preview(
        latent="unpacked [channels, height / 4, width / 4], the batch norm undone; rgb = latent^T matrix + offset",
        matrix=tuple(tuple(round(float(x), 6) for x in row) for row in solution[:-1]),
        offset=tuple(round(float(x), 6) for x in solution[-1]),
        r2=round(1 - float(left), 5),
    )


def _vocabulary() -> Vocabulary:
    return Vocabulary(
        shapes=data.SHAPES,
        colours=data.PALETTE,
        positions=tuple(data.POSITIONS),
        sizes=tuple(data.SIZES),
        edits=("another colour", "another background", "another shape"),
        unsaid={"position": "center", "size": "medium", "background": "white; black behind a white shape"},
    )


def _training(training: dit.Training, seed: int) -> dict[str, Any]:
    now = training.progress
    return {
        "seed": seed,
        "date": time.strftime("%Y-%m-%d"),
        "samples": now.samples,
        "minutes": round(now.seconds / 60, 1),
        "device": training.device,
        "loss": round(now.loss, 5),
        "edit_loss": round(now.edit_loss, 5),
        "held_out_triples": len(data.held_out()),
        "progress": [{k: round(v, 4) for k, v in entry.items()} for entry in now.history],
    }


def _files(folder: Path) -> tuple[File, ...]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return tuple(
        File(
            path=p.relative_to(folder).as_posix(),
            bytes=p.stat().st_size,
            sha256=hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in paths
    )
