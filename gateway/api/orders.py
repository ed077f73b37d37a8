"""What a wish means for its model: every default resolved, every bound kept, one job for each picture."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.api.state import State
from gateway.api.wishes import MAX_IMAGES, MAX_SIDE, Wish
from gateway.auth import Caller
from gateway.jobs.job import Job
from gateway.story import Story
from gateway.uploads import Upload
from shared.cards import ModelCard, Size, Task
from shared.errors import BadInput, StateChanged, UnsupportedOperation, UnsupportedSize
from shared.loras import Adapter
from shared.messages import Parameters

# Pixels times steps of one request, all its images together: ten of 1024x1024 with 100 steps.
MAX_WORK = MAX_IMAGES * 1024 * 1024 * 100


@dataclass(frozen=True, slots=True)
class Order:
    """A wish that can be carried out; `created` in Unix seconds, `arrived` in monotonic ones."""

    wish: Wish
    task: Task
    caller: Caller
    model: str
    card: ModelCard
    parameters: Parameters
    jobs: list[Job]
    story: Story
    created: int
    arrived: float


def place(
    state: State,
    wish: Wish,
    task: Task,
    caller: Caller,
    story: Story,
    arrived: float,
    inputs: Sequence[Upload] = (),
    loras: tuple[Adapter, ...] | None = None,
) -> Order:
    """The order for a wish, with the LoRAs that it brings along, and the pictures it works from.

    Of an inpainting the last is the mask. Raises UnknownModel, NotReady, StateChanged, or a BadInput where the model
    cannot do exactly that.
    """
    wish.check()
    model = state.resolve(wish.model)
    card = state.card(model)
    _able(card, task, len(inputs))
    epoch = state.loras.epoch(model)
    if wish.lora_epoch not in (None, epoch):
        changed = f"The LoRA state of {model!r} is of epoch {epoch} now, and not of {wish.lora_epoch}."
        raise StateChanged(changed, param="lora_epoch")
    parameters = _parameters(wish, card, task, inputs, write=state.settings.png_parameters)
    longest = state.settings.request_timeout_seconds
    jobs = [
        Job(
            id=secrets.token_hex(8),
            model=model,
            task=task,
            parameters=parameters,
            seeds=(seed,),
            submitted=arrived,
            deadline=arrived + min(wish.timeout_seconds or longest, longest),
            request_id=story.request_id,
            inputs=tuple(upload.data for upload in inputs),
            previews=(wish.partial_images or 0) if wish.stream else 0,
            priority=wish.priority or 0,
            owner=caller.account,
            alone=bool(wish.deterministic),
            loras=loras,
            pin=wish.lora_epoch,
        )
        for seed in wish.seeds()
    ]
    story.model, story.jobs = model, jobs
    for job in jobs:
        state.traces.begin(job)
    if wish.extra:
        state.metrics.ignored.inc(len(wish.extra))
    return Order(wish, task, caller, model, card, parameters, jobs, story, int(time.time()), arrived)


def _able(card: ModelCard, task: Task, pictures: int) -> None:
    """Pass if the model has this task, for so many pictures."""
    if task not in card.tasks:
        words = {"edit": "edit pictures", "inpaint": "edit under a mask", "variation": "make variations"}
        raise UnsupportedOperation(f"This model cannot {words.get(task, task)}.", param="model")
    if task == "variation" and pictures > 1:
        raise UnsupportedOperation("A picture is redrawn from one image.", param="image")
    most = {"edit": card.max_images, "inpaint": card.max_masked_images + 1}.get(task, 1)
    if pictures > most:
        most -= task == "inpaint"
        with_mask = " beside a mask" if task == "inpaint" else ""
        raise UnsupportedOperation(
            f"This model works from at most {most} image{'s' * (most != 1)}{with_mask}.", param="image"
        )


def _parameters(wish: Wish, card: ModelCard, task: Task, inputs: Sequence[Upload], *, write: bool) -> Parameters:
    size = _size(wish, card, task, inputs)
    steps = wish.steps or card.steps
    guidance = card.guidance if wish.guidance is None else wish.guidance
    if steps > card.max_steps:
        raise BadInput(f"Invalid 'steps': expected a value of at most {card.max_steps}.", param="steps")
    if guidance > card.max_guidance:
        raise BadInput(f"Invalid 'guidance': expected a value of at most {card.max_guidance}.", param="guidance")
    if wish.negative_prompt and not card.negative_prompt:
        raise UnsupportedOperation("This model takes no negative prompt.", param="negative_prompt")
    if wish.scheduler is not None and wish.scheduler.lower() not in ("auto", card.scheduler):
        raise UnsupportedOperation(
            f"This model has no scheduler of that name: supported are 'auto' and '{card.scheduler}'.", param="scheduler"
        )
    if wish.background == "transparent" and not card.transparent:
        raise UnsupportedOperation("Transparent background is not supported for this model.", param="background")
    if (wish.n or 1) * size.width * size.height * steps > MAX_WORK:
        raise BadInput("The request is too large: n x width x height x steps passes the limit.", param="n")
    strength = getattr(wish, "strength", None)
    return Parameters(
        prompt=wish.prompt,
        negative_prompt=wish.negative_prompt or "",
        width=size.width,
        height=size.height,
        steps=steps,
        guidance=guidance,
        strength=(strength or card.strength) if task in ("inpaint", "variation") else None,
        mask_kind=getattr(wish, "mask_kind", "transparent"),
        mask_blur=getattr(wish, "mask_blur", 0) if task == "inpaint" else 0,
        stretch=getattr(wish, "stretch", False),
        transparent=wish.background == "transparent",
        output_format=wish.output_format or "png",
        output_compression=100 if wish.output_compression is None else wish.output_compression,
        write_parameters=write,
    )


def _size(wish: Wish, card: ModelCard, task: Task, inputs: Sequence[Upload]) -> Size:
    """The size that is asked for; without one the model's own, or of an edit the one closest to its first picture.

    Under a mask that is exactly the picture's: what is not edited stays as it is.
    """
    if (wish.width is None) != (wish.height is None):
        raise BadInput("'width' and 'height' go together.", param="width" if wish.width is None else "height")
    if wish.width is not None and wish.height is not None:
        if wish.size not in (None, "auto", f"{wish.width}x{wish.height}"):
            raise BadInput("'size' and 'width' x 'height' differ.", param="size")
        size = Size(width=wish.width, height=wish.height)
    elif wish.size not in (None, "auto"):
        size = _parse_size(wish.size)
    elif task == "generate":
        return card.sizes.default
    else:
        given = inputs[0].header.size
        return given if task == "inpaint" else card.sizes.closest(given)
    if not card.sizes.fits(size) and not (task == "inpaint" and size == inputs[0].header.size):
        near = ", ".join(str(candidate) for candidate in card.sizes.nearest(size))
        raise UnsupportedSize(f"Invalid size '{size}': this model makes, nearest to it, {near}.", param="size")
    return size


def _parse_size(text: str) -> Size:
    """WIDTHxHEIGHT as OpenAI writes it; nothing that int() would take besides."""
    width, cross, height = text.partition("x")
    if not (cross and all(side.isascii() and side.isdigit() and len(side) <= 5 for side in (width, height))):
        raise BadInput("Invalid 'size': expected WIDTHxHEIGHT in pixels, or 'auto'.", param="size")
    if not all(1 <= int(side) <= MAX_SIDE for side in (width, height)):
        raise BadInput(f"Invalid 'size': each side is at least 1 and at most {MAX_SIDE}.", param="size")
    return Size(width=int(width), height=int(height))
