"""Any Diffusers pipeline of a known family, from a local folder; what differs between them is in families.py."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import diffusers
import torch
import transformers

from shared.errors import InvalidOutput, LoadFailed, OutOfMemory, ReplicastError, UnsupportedSize
from shared.messages import Device, ModelCard, Parameters, Run, Size, SizeRule, WantedModel
from worker import device as devices
from worker import images, models
from worker.backends import OnStep, Picture
from worker.backends.families import Family, family_of
from worker.embedded import Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

T = TypeVar("T")
_CUSTOMARY_SIDE = 512


class Diffusion:
    """A Diffusers pipeline. One picture a call: a seed's bytes never depend on what was asked beside it."""

    def __init__(self, model: WantedModel, device: Device) -> None:
        self._model = model
        self._device = device
        self._pipeline: Any = None
        self._family: Family
        self._manifest: Manifest | None = None

    def load(self) -> ModelCard:
        if self._model.options:
            raise LoadFailed(f"{self._model.id}: a pipeline takes no options, found {', '.join(self._model.options)}")
        folder = models.locate(self._model)
        self._manifest = models.read_manifest(folder)
        self._family = family_of(folder)
        target = devices.torch_device(self._device)
        dtype = devices.torch_dtype(self._device, self._manifest.cpu_dtype if self._manifest else "float32")
        devices.set_threads(self._device)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()

        def read() -> Any:
            # Over a slice of several GPUs the parts of the pipeline are spread by their size.
            spread = {"device_map": "balanced"} if len(self._device.names) > 1 and target != "cpu" else {}
            pipeline = getattr(diffusers, self._family.pipeline).from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, **spread
            )
            pipeline.set_progress_bar_config(disable=True)
            return pipeline if spread else pipeline.to(target)

        self._pipeline = self._guarded(read)
        return self._card(models.revision(folder))

    def generate(self, run: Run, inputs: Sequence[bytes | memoryview], on_step: OnStep) -> list[Picture]:
        steps = run.parameters.steps
        total = steps * len(run.seeds)
        pictures = []
        for place, seed in enumerate(run.seeds):

            def image(seed: int = seed, before: int = place * steps) -> Pixels:
                return self._image(run.parameters, seed, lambda step: on_step(before + step, total))

            pictures.append(Picture(seed, pixels=self._guarded(image)))
        return pictures

    def memory_bytes(self) -> int:
        if self._pipeline is None:
            return 0
        modules = [part for part in self._pipeline.components.values() if isinstance(part, torch.nn.Module)]
        return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))

    def unload(self) -> None:
        self._pipeline = None
        gc.collect()
        devices.free_memory(self._device)

    def _card(self, revision: str) -> ModelCard:
        family, said = self._family, self._manifest
        return ModelCard(
            family=family.name,
            revision=revision,
            tasks=("generate",),
            sizes=_enlarged_sizes(said) if said else family.sizes,
            steps=said.defaults.steps if said else family.steps,
            max_steps=family.max_steps,
            guidance=said.defaults.guidance if said else family.guidance,
            max_guidance=family.max_guidance,
            negative_prompt=family.negative_prompt != "none",
            vocabulary=_words(said) if said else (),
        )

    def _image(self, asked: Parameters, seed: int, on_step: Callable[[int], None]) -> Pixels:
        """The finished pixels of one seed. What `on_step` raises passes through."""

        def after_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            try:
                on_step(index + 1)
            except BaseException:
                # The pipeline would do this at its own end, which it does not reach now.
                pipeline.maybe_free_model_hooks()
                raise
            return {}

        size = self._rendered(Size(width=asked.width, height=asked.height))
        with torch.inference_mode():
            picture = self._pipeline(
                **self._arguments(asked, size),
                # Noise drawn on the CPU is the same on every device.
                generator=[torch.Generator("cpu").manual_seed(seed)],
                callback_on_step_end=after_step,
                output_type="pt",
            ).images[0]
            if not picture.isfinite().all():
                raise InvalidOutput("the pipeline made a picture with NaN or infinity in it")
            # To bytes on the device: a quarter of the data crosses. In float32: bfloat16 has no steps of 1/255.
            scaled = picture.float().mul(255).round().clamp(0, 255).to(torch.uint8)
            pixels: Pixels = scaled.permute(1, 2, 0).contiguous().cpu().numpy()
        return images.enlarge(pixels, asked.width // size.width)

    def _rendered(self, asked: Size) -> Size:
        """The size at which a picture of size `asked` is made, before each of its pixels is repeated."""
        if self._manifest is None:
            return asked
        for size, enlarged in _multiples(self._manifest):
            if enlarged == asked:
                return size
        raise UnsupportedSize(f"{self._model.id} does not make {asked}", param="size")

    def _arguments(self, asked: Parameters, size: Size) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "prompt": asked.prompt,
            "width": size.width,
            "height": size.height,
            "num_inference_steps": asked.steps,
            self._family.guidance_argument: asked.guidance,
        }
        text: dict[str, Any] = {}
        if self._manifest:
            text["max_sequence_length"] = self._manifest.defaults.max_sequence_length
            text["text_encoder_out_layers"] = self._manifest.defaults.text_encoder_out_layers
        if asked.negative_prompt and self._family.negative_prompt == "argument":
            arguments["negative_prompt"] = asked.negative_prompt
        elif asked.negative_prompt and self._family.negative_prompt == "embeddings":
            embeddings, _ = self._pipeline.encode_prompt(asked.negative_prompt, **text)
            arguments["negative_prompt_embeds"] = embeddings
        return arguments | text

    def _guarded(self, act: Callable[[], T]) -> T:
        """What `act` gives. Raises OutOfMemory after giving back what it held, and DeviceLost."""
        failure: ReplicastError
        try:
            return act()
        except RuntimeError as error:
            if devices.is_out_of_memory(error):
                failure = OutOfMemory(f"{self._model.id} does not fit into the device's memory")
            elif devices.is_lost(error):
                raise devices.DeviceLost(str(error)) from error
            else:
                raise
        # Only now is the error gone, and with it the frames that held the tensors.
        gc.collect()
        devices.free_memory(self._device)
        raise failure


def _multiples(said: Manifest) -> list[tuple[Size, Size]]:
    """Each size that the model is rendered at with each that is made of it."""
    return [
        (Size(width=width, height=height), Size(width=width * factor, height=height * factor))
        for width, height in said.sizes.native
        for factor in said.sizes.multiples
    ]


def _enlarged_sizes(said: Manifest) -> SizeRule:
    """What a small model offers; a request without a size gets what clients ask for by habit, not a stamp."""
    allowed = tuple(enlarged for _, enlarged in _multiples(said))
    native = _multiples(said)[0][0]
    customary = (size for size in allowed if size.width <= _CUSTOMARY_SIDE)
    default = max(customary, key=lambda size: size.width, default=native)
    return SizeRule(default=default, allowed=allowed, native=native, enlargement="nearest")


def _words(said: Manifest) -> tuple[str, ...]:
    known = said.vocabulary
    return (*known.shapes, *known.colours, *known.positions, *known.sizes)
