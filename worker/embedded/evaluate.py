"""How well a pipeline draws and edits what it is told, judged by the scorer that the tests use."""

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from worker.embedded import data, text

# By name, for the installed package has no tests: only training, which runs in the repository, needs the judge.
scorer = importlib.import_module("tests.scorer")

STEPS = 6
GUIDANCE = 2.0
ATTRIBUTES = ("shape", "colour", "background", "position")


def draw(
    pipeline: Flux2KleinPipeline, prompts: list[str], seed: int, image: Image.Image | None = None, **options: Any
) -> list[Image.Image]:
    """Native pictures of the prompts, one generator each, seeds counted up from `seed`."""
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **options}
    out: list[Image.Image] = []
    for start in range(0, len(prompts), 16):
        part = prompts[start : start + 16]
        generators = [torch.Generator().manual_seed(seed + start + k) for k in range(len(part))]
        result = pipeline(
            image=image,
            prompt=part,
            height=data.SIDE,
            width=data.SIDE,
            generator=generators,
            max_sequence_length=text.LENGTH,
            text_encoder_out_layers=text.OUT_LAYERS,
            **settings,
        )
        out += result.images
    return out


def figures(pipeline: Flux2KleinPipeline, count: int, seed: int, enlarge: int = 1, **options: Any) -> dict[str, float]:
    """The share of held-out prompts with each attribute right; pictures are judged after exact enlargement."""
    cases = scorer.held_out_prompts(count, seed)
    images = draw(pipeline, [prompt for prompt, _ in cases], seed, **options)
    scores = [
        scorer.score(image.resize((image.width * enlarge,) * 2, Image.Resampling.NEAREST), wanted)
        for image, (_, wanted) in zip(images, cases, strict=True)
    ]
    return {name: sum(getattr(s, name) for s in scores) / count for name in (*ATTRIBUTES, "all")}


def edit_figures(pipeline: Flux2KleinPipeline, count: int, seed: int, **options: Any) -> dict[str, float]:
    """Like `figures`, for edits of rendered pictures whose result is any scene: a third of each kind."""
    rng = random.Random(seed)
    edits = data.edits(rng, frozenset())
    scores = []
    for k, edit in zip(range(count), edits, strict=False):
        image = draw(pipeline, [edit.instruction], seed + k, data.picture(edit.before), **options)[0]
        wanted = scorer.Expectation(edit.after.shape, edit.after.colour, edit.after.background, edit.after.position)
        scores.append(scorer.score(image, wanted))
    return {name: sum(getattr(s, name) for s in scores) / count for name in (*ATTRIBUTES, "all")}


def contact_sheet(pipeline: Flux2KleinPipeline, path: Path, columns: int = 8, rows: int = 5) -> None:
    """Pictures of held-out prompts in rows; the last row shows edits, before and after in turn."""
    prompts = [prompt for prompt, _ in scorer.held_out_prompts(columns * (rows - 1), seed=2)]
    images = draw(pipeline, prompts, seed=7)
    for _, edit in zip(range(columns // 2), data.edits(random.Random(5), frozenset()), strict=False):
        before = data.picture(edit.before)
        images += [before, *draw(pipeline, [edit.instruction], 3, before)]
    side = data.SIDE * 2
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 4)), (90, 90, 90))
    for k, image in enumerate(images):
        sheet.paste(
            image.resize((side, side), Image.Resampling.NEAREST), (k % columns * (side + 4), k // columns * (side + 4))
        )
    sheet.save(path)


def compare(pipeline: Flux2KleinPipeline, log: Callable[[str], None], count: int = 100) -> None:
    """Logs the figures for several step counts and guidances, to choose the manifest's from."""
    for steps in (4, 6, 8):
        for guidance in (1.0, 2.0, 3.0, 4.0):
            found = figures(pipeline, count, 11, num_inference_steps=steps, guidance_scale=guidance)
            log(f"{steps} steps, guidance {guidance}: {found}")
