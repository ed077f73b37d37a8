"""What each family of Diffusers pipelines can do and how it is called. Adding a family: one record in FAMILIES."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from shared.cards import Size, SizeRule
from shared.errors import LoadFailed
from worker import models


@dataclass(frozen=True, slots=True)
class Family:
    """One pipeline class: its defaults and bounds, and the names it has for what we ask."""

    name: str
    pipeline: str
    sizes: SizeRule
    steps: int
    max_steps: int
    guidance: float
    max_guidance: float
    guidance_argument: str = "guidance_scale"
    # How a negative prompt is handed over: by an argument of that name, as its embeddings, or not at all.
    negative_prompt: Literal["argument", "embeddings", "none"] = "none"
    # The pipeline that paints under a mask, or over a whole picture from noise laid on it; it shares all modules.
    inpainting: str | None = None
    max_images: int = 0
    max_masked_images: int = 0
    # A larger picture is painted over at a smaller size, as that pipeline itself would, and enlarged.
    inpainting_pixels: int = 1024 * 1024
    # A picture to look at has at most so many pixels, and is at most so many times as long as it is short.
    reference_pixels: int = 1024 * 1024
    reference_shape: int = 8
    # How much of a picture an inpainting or a variation makes anew.
    strength: float = 0.8
    scheduler: str = "euler"
    # How its latents lie in its loop, by UNPACK in previews.py, and how many of them make a side of a token.
    latents: str = ""
    patch: int = 2
    # How many tokens of a prompt it reads, where the pipeline itself does not say.
    text_tokens: int = 512
    # How many pictures one call may make.
    max_batch: int = 1
    # Steps of a folder whose index says `is_distilled`: such a model needs few and takes no notice of guidance.
    distilled_steps: int | None = None


_RECORDS = (
    Family(
        name="flux2-klein",
        pipeline="Flux2KleinPipeline",
        # The autoencoder's 8 times its patches of 2; the pipeline itself would silently round down.
        sizes=SizeRule(default=Size(width=1024, height=1024), multiple=16),
        steps=50,
        max_steps=100,
        guidance=4.0,
        max_guidance=20.0,
        negative_prompt="embeddings",
        inpainting="Flux2KleinInpaintPipeline",
        max_images=4,
        # The one that is painted in, and one to look at.
        max_masked_images=2,
        latents="flux2",
        max_batch=16,
        distilled_steps=4,
    ),
    Family(
        name="sdxl",
        pipeline="StableDiffusionXLPipeline",
        sizes=SizeRule(default=Size(width=1024, height=1024), multiple=8),
        steps=50,
        max_steps=150,
        guidance=5.0,
        max_guidance=30.0,
        negative_prompt="argument",
        text_tokens=77,
        max_batch=16,
    ),
    # Its guidance is what is added: 0 is none, which is what the turbo model takes, with 8 or 9 steps.
    Family(
        name="z-image",
        pipeline="ZImagePipeline",
        sizes=SizeRule(default=Size(width=1024, height=1024), multiple=16),
        steps=50,
        max_steps=100,
        guidance=5.0,
        max_guidance=20.0,
        negative_prompt="argument",
        max_batch=16,
    ),
)
FAMILIES = {family.pipeline: family for family in _RECORDS}


def family_of(folder: Path) -> Family:
    """The family of a pipeline's folder, by its class. Raises LoadFailed for a class that is not known."""
    index = models.read_index(folder)
    name = index.get("_class_name")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise LoadFailed(f"{folder.name}: pipeline class {name!r} is not known; known are {', '.join(FAMILIES)}")
    if index.get("is_distilled") and family.distilled_steps is not None:
        # Without guidance there is nothing that a negative prompt could steer away from.
        return replace(family, steps=family.distilled_steps, guidance=1.0, negative_prompt="none")
    return family
