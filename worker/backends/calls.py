"""How a task becomes one call of a pipeline: which pipeline, its arguments, its steps, and the size it draws at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.cards import Size, SizeRule, Task
from shared.errors import UnsupportedOperation, UnsupportedSize
from shared.messages import Parameters, Tokens
from worker import images
from worker.backends import Inputs
from worker.backends.families import Family
from worker.embedded import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_CUSTOMARY_SIDE = 512


@dataclass(frozen=True, slots=True)
class Call:
    """One call: of which of a family's two pipelines, the size it draws at, and the steps it makes."""

    inpainting: bool
    arguments: dict[str, Any]
    size: Size
    steps: int
    tokens: Tokens


class Caller:
    """Makes the calls for one loaded pipeline, by its family and, where it has one, its manifest."""

    def __init__(self, family: Family, said: Manifest | None, pipeline: Any) -> None:
        self._family = family
        self._said = said
        self._pipeline = pipeline
        # One token of the image model is this many pixels wide and high.
        self._token_side = pipeline.vae_scale_factor * family.patch

    @property
    def sizes(self) -> SizeRule:
        """What may be asked for."""
        return enlarged_sizes(self._said) if self._said else self._family.sizes

    def call(self, task: Task, asked: Parameters, given: Inputs) -> Call:
        """The call for a picture of size `asked`. Raises UnsupportedSize or UnsupportedOperation."""
        size = self._drawn(task, Size(width=asked.width, height=asked.height))
        arguments: dict[str, Any] = {
            "prompt": asked.prompt,
            "width": size.width,
            "height": size.height,
            "num_inference_steps": asked.steps,
            self._family.guidance_argument: asked.guidance,
        }
        steps = asked.steps
        pictures: tuple[Pixels, ...] = ()
        match task:
            case "edit":
                pictures = tuple(self._reference(pixels, size) for pixels in given.images)
                arguments["image"] = [images.pillow(pixels) for pixels in pictures]
            case "inpaint" | "variation":
                place = images.resize if task == "inpaint" or asked.stretch else images.cover
                pictures = (place(given.images[0], size),)
                strength = asked.strength or self._family.strength
                arguments |= {
                    "image": images.pillow(pictures[0]),
                    "mask_image": images.pillow(_painted(given.mask, size)),
                    "strength": strength,
                }
                if len(given.images) > 1:
                    reference = self._reference(given.images[1], size)
                    arguments["image_reference"] = images.pillow(reference)
                    pictures = (*pictures, reference)
                # As the pipelines count: the first steps, which the strength leaves out, are not made.
                steps -= int(max(steps - min(steps * strength, steps), 0))
        arguments |= self._text(asked)
        tokens = Tokens(
            text=self._text_tokens(asked.prompt),
            image_in=sum(self._tokens(pixels.shape[1], pixels.shape[0]) for pixels in pictures),
            image_out=self._tokens(size.width, size.height),
        )
        return Call(task in ("inpaint", "variation"), arguments, size, steps, tokens)

    def together(self, asked: Sequence[Parameters]) -> Call:
        """The call for several pictures, which differ in their prompts alone; its tokens are those of the first."""
        call = self.call("generate", asked[0], Inputs())
        prompts = {"prompt": [each.prompt for each in asked]}
        return replace(call, arguments=call.arguments | prompts | self._text(*asked))

    def tokens(self, call: Call, asked: Parameters) -> Tokens:
        """The tokens of one of the pictures of a call for several."""
        return call.tokens.model_copy(update={"text": self._text_tokens(asked.prompt)})

    def finish(self, pixels: Pixels, asked: Parameters, given: Inputs) -> Pixels:
        """What the call drew, at the size that was asked for; outside of a mask exactly what was given."""
        size = Size(width=asked.width, height=asked.height)
        factor = size.width // pixels.shape[1]
        if factor and (pixels.shape[1] * factor, pixels.shape[0] * factor) == (size.width, size.height):
            pixels = images.enlarge(pixels, factor)
        else:
            pixels = images.resize(pixels, size)
        if given.mask is None:
            return pixels
        return images.laid_over(images.resize(given.images[0], size), pixels, images.resize(given.mask, size))

    def _drawn(self, task: Task, asked: Size) -> Size:
        """The size at which a picture of size `asked` is drawn, before it is brought to that.

        Under a mask any size may be asked for: what is seen of the drawing lies between the pixels that were given.
        """
        exactly = task != "inpaint"
        if self._said is None:
            if task not in ("inpaint", "variation"):
                return asked
            return self._family.sizes.model_copy(update={"max_pixels": self._family.inpainting_pixels}).closest(asked)
        natives = [native for native, enlarged in multiples(self._said) if enlarged == asked]
        if natives:
            return natives[0]
        if exactly:
            raise UnsupportedSize(f"{self._said.name} does not make {asked}", param="size")
        return SizeRule(default=asked, allowed=tuple(native for native, _ in multiples(self._said))).closest(asked)

    def _reference(self, pixels: Pixels, size: Size) -> Pixels:
        """A picture to look at, not to paint over: a model of few sizes knows only those, others take it as it is.

        A pipeline refuses what is too small or too long, and shrinks by itself what is too large, at another cost than
        what we would tell.
        """
        if self._said is not None:
            return images.cover(pixels, size)
        family, (height, width) = self._family, pixels.shape[:2]
        long, short = max(width, height), min(width, height)
        short = max(short, -(-long // family.reference_shape))
        if short < family.sizes.min_side:
            long, short = long * family.sizes.min_side // short, family.sizes.min_side
        elif long * short > family.reference_pixels:
            long = math.isqrt(family.reference_pixels * long // short)
            short = family.reference_pixels // long
        long = min(long, short * family.reference_shape)
        return images.resize(
            pixels, Size(width=long, height=short) if width > height else Size(width=short, height=long)
        )

    def _text(self, *asked: Parameters) -> dict[str, Any]:
        text: dict[str, Any] = {}
        if self._said:
            text["max_sequence_length"] = self._said.defaults.max_sequence_length
            text["text_encoder_out_layers"] = self._said.defaults.text_encoder_out_layers
        if not asked[0].negative_prompt:
            return text
        negative = [each.negative_prompt for each in asked]
        match self._family.negative_prompt:
            case "argument":
                return text | {"negative_prompt": negative if len(asked) > 1 else negative[0]}
            case "embeddings":
                embeddings, _ = self._pipeline.encode_prompt(negative, **text)
                return text | {"negative_prompt_embeds": embeddings}
        raise UnsupportedOperation("this model takes no negative prompt", param="negative_prompt")

    def _text_tokens(self, prompt: str) -> int:
        if self._said:
            most = self._said.defaults.max_sequence_length
        else:
            most = getattr(self._pipeline, "tokenizer_max_length", self._family.text_tokens)
        return min(len(self._pipeline.tokenizer(prompt).input_ids), int(most))

    def _tokens(self, width: int, height: int) -> int:
        return int((width // self._token_side) * (height // self._token_side))


def multiples(said: Manifest) -> list[tuple[Size, Size]]:
    """Each size that the model is drawn at with each that is made of it."""
    return [
        (Size(width=width, height=height), Size(width=width * factor, height=height * factor))
        for width, height in said.sizes.native
        for factor in said.sizes.multiples
    ]


def enlarged_sizes(said: Manifest) -> SizeRule:
    """What a small model offers; a request without a size gets what clients ask for by habit, not a stamp."""
    allowed = tuple(enlarged for _, enlarged in multiples(said))
    native = multiples(said)[0][0]
    customary = (size for size in allowed if size.width <= _CUSTOMARY_SIDE)
    default = max(customary, key=lambda size: size.width, default=native)
    return SizeRule(default=default, allowed=allowed, native=native, enlargement="nearest")


def _painted(mask: Pixels | None, size: Size) -> Pixels:
    """The mask at the size that is drawn: where any of it is to be painted, so that the drawing reaches its edge."""
    if mask is None:
        return np.full((size.height, size.width), 255, np.uint8)
    return np.where(images.resize(mask, size) > 0, np.uint8(255), np.uint8(0))
