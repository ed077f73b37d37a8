"""What AUTOMATIC1111's clients are answered: what a picture was made with, never what was only asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.api.orders import Order
from gateway.api.sdapi_desk import Running
from gateway.api.sdapi_wishes import Img2Img, Txt2Img
from gateway.jobs.job import Outcome, Result
from shared.cards import ModelCard
from shared.wire import Buffer

# The one way in which steps are spread over a picture's noise: the model's own.
SCHEDULER = "Automatic"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its seed; one that is not `finished` is what it was about to be."""

    seed: int
    image: Buffer
    finished: bool


def pictures(running: Running, outcomes: Sequence[Outcome]) -> list[Picture]:
    """What there is of an order: of a picture that was ended its last preview, if that was ever seen."""
    there = []
    for job, outcome in zip(running.order.jobs, outcomes, strict=True):
        if isinstance(outcome, Result):
            there.append(Picture(job.seeds[0], outcome.images[0], finished=True))
        elif (preview := running.shown.get(job.id)) is not None:
            there.append(Picture(job.seeds[0], preview, finished=False))
    return there


def sampler(card: ModelCard) -> str:
    """The one sampler of a model, as it is listed and told."""
    return card.scheduler.capitalize() or SCHEDULER


def parameters(asked: Txt2Img, order: Order) -> dict[str, Any]:
    """The request, with every value as it was used."""
    used = order.parameters
    said: dict[str, Any] = {
        "prompt": used.prompt,
        "negative_prompt": used.negative_prompt,
        "seed": order.jobs[0].seeds[0],
        "steps": used.steps,
        "cfg_scale": used.guidance,
        "width": used.width,
        "height": used.height,
        "batch_size": asked.batch_size,
        "n_iter": asked.n_iter,
        "sampler_name": sampler(order.card),
        "scheduler": SCHEDULER,
        "override_settings": {"sd_model_checkpoint": order.model},
        "send_images": asked.send_images,
        "save_images": False,
    }
    if isinstance(asked, Img2Img):
        said |= {
            "denoising_strength": used.strength,
            "resize_mode": asked.resize_mode,
            "mask_blur": used.mask_blur,
            "inpainting_mask_invert": asked.inpainting_mask_invert,
        }
    return said


def info(asked: Txt2Img, running: Running, there: Sequence[Picture]) -> str:
    """What these pictures were made with, as a text that is JSON, which is how it is parsed."""
    order, used = running.order, running.order.parameters
    return json.dumps(
        {
            "prompt": used.prompt,
            "all_prompts": [used.prompt] * len(there),
            "negative_prompt": used.negative_prompt,
            "all_negative_prompts": [used.negative_prompt] * len(there),
            "seed": order.jobs[0].seeds[0],
            "all_seeds": [picture.seed for picture in there],
            "subseed": -1,
            "all_subseeds": [-1] * len(there),
            "subseed_strength": 0,
            "width": used.width,
            "height": used.height,
            "sampler_name": sampler(order.card),
            "cfg_scale": used.guidance,
            "steps": used.steps,
            "batch_size": asked.batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": order.model,
            "sd_model_hash": None,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": used.strength,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": [_infotext(order, picture) for picture in there],
            "styles": [],
            "job_timestamp": running.began,
            "clip_skip": 1,
            "is_using_inpainting_conditioning": False,
            "interrupted": running.interrupted or running.skipped,
        }
    )


def _infotext(order: Order, picture: Picture) -> str:
    """The same of one picture, in the words that are pasted from one front end into another."""
    used = order.parameters
    facts = {
        "Steps": used.steps,
        "Sampler": sampler(order.card),
        "CFG scale": f"{used.guidance:g}",
        "Seed": picture.seed,
        "Size": f"{used.width}x{used.height}",
        "Model": order.model,
    }
    if used.strength is not None:
        facts["Denoising strength"] = f"{used.strength:g}"
    if not picture.finished:
        facts["Interrupted"] = True
    negative = [f"Negative prompt: {used.negative_prompt}"] if used.negative_prompt else []
    return "\n".join([used.prompt, *negative, ", ".join(f"{name}: {value}" for name, value in facts.items())])
