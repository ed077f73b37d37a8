"""Any Diffusers pipeline of a known family, from a local folder; what differs between them is in families.py."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import diffusers
import torch
import transformers

from shared.cards import ModelCard
from shared.errors import InvalidOutput, LoadFailed, OutOfMemory, ReplicastError
from shared.loras import Adapter, LoraState
from shared.messages import Device, Match, Run, WantedModel
from worker import device as devices
from worker import models
from worker.backends import Inputs, OnPreview, OnStep, Picture, preview_steps
from worker.backends.calls import Call, Caller
from worker.backends.families import Family, family_of
from worker.backends.previews import UNPACK, Map, Watched
from worker.embedded import Manifest
from worker.loras.state import Limits, Loras

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

T = TypeVar("T")


class Diffusion:
    """A Diffusers pipeline. One picture a call: a seed's bytes never depend on what was asked beside it."""

    def __init__(self, model: WantedModel, device: Device) -> None:
        self._model = model
        self._device = device
        self._pipeline: Any = None
        self._inpainting: Any = None
        self._preview: Map | None = None
        self._family: Family
        self._caller: Caller
        self._loras: Loras

    def load(self) -> ModelCard:
        limits = self._limits()
        folder = models.locate(self._model)
        said = models.read_manifest(folder)
        family = self._family = family_of(folder)
        target = devices.torch_device(self._device)
        dtype = devices.torch_dtype(self._device, said.cpu_dtype if said else "float32")
        devices.set_threads(self._device)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()

        def read() -> Any:
            # Over a slice of several GPUs the parts of the pipeline are spread by their size.
            spread = {"device_map": "balanced"} if len(self._device.names) > 1 and target != "cpu" else {}
            pipeline = getattr(diffusers, family.pipeline).from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, **spread
            )
            pipeline.set_progress_bar_config(disable=True)
            return pipeline if spread else pipeline.to(target)

        self._pipeline = self._guarded(read)
        if family.latents:
            self._pipeline.scheduler = Watched.from_config(self._pipeline.scheduler.config)
        if family.inpainting is not None:
            self._inpainting = _sibling(self._pipeline, family.inpainting)
        if family.latents:
            self._preview = (said and Map.of(said)) or self._guarded(lambda: Map.fitted(self._pipeline.vae))
        self._caller = Caller(family, said, self._pipeline)
        self._loras = self._guarded(lambda: Loras(self._pipeline, folder, limits))
        return self._card(models.revision(folder), said)

    def generate(self, run: Run, inputs: Inputs, on_step: OnStep, on_preview: OnPreview) -> list[Picture]:
        with self._with(run.loras):
            return self._one_by_one(run, inputs, on_step, on_preview)

    def generate_together(self, runs: Sequence[Run], on_step: OnStep) -> list[Picture]:
        assert all(run.loras == runs[0].loras for run in runs)
        with self._with(runs[0].loras):
            return self._in_one_call(runs, on_step)

    @contextlib.contextmanager
    def _with(self, loras: Sequence[Adapter] | None) -> Iterator[None]:
        """A run's own LoRAs while it lasts."""
        with contextlib.ExitStack() as stack:
            self._guarded(lambda: stack.enter_context(self._loras.overlay(loras)))
            yield

    def _one_by_one(self, run: Run, inputs: Inputs, on_step: OnStep, on_preview: OnPreview) -> list[Picture]:
        asked = run.parameters

        def made() -> Call:
            with torch.inference_mode():
                return self._caller.call(run.task, asked, inputs)

        # Once: the pictures and the negative prompt's embeddings are the same for every seed.
        call = self._guarded(made)
        total = call.steps * len(run.seeds)
        pictures = []
        for place, seed in enumerate(run.seeds):

            def stepped(step: int, before: int = place * call.steps) -> None:
                on_step(before + step, total)

            def shown(index: int, pixels: Pixels, before: int = place * run.previews) -> None:
                on_preview(before + index, pixels)

            def image(seed: int = seed, stepped: Any = stepped, shown: Any = shown) -> Pixels:
                return self._images(call, [seed], stepped, shown, run.previews)[0]

            pixels = self._caller.finish(self._guarded(image), asked, inputs)
            pictures.append(Picture(seed, pixels=pixels, tokens=call.tokens))
        return pictures

    def _in_one_call(self, runs: Sequence[Run], on_step: OnStep) -> list[Picture]:
        def made() -> tuple[Call, list[Pixels]]:
            with torch.inference_mode():
                call = self._caller.together([run.parameters for run in runs])
            seeds = [run.seeds[0] for run in runs]
            return call, self._images(call, seeds, lambda step: on_step(step, call.steps))

        call, drawn = self._guarded(made)
        return [
            Picture(
                run.seeds[0],
                pixels=self._caller.finish(pixels, run.parameters, Inputs()),
                tokens=self._caller.tokens(call, run.parameters),
            )
            for run, pixels in zip(runs, drawn, strict=True)
        ]

    def prepare(self, loras: LoraState, shelf: str) -> tuple[Match, ...]:
        return self._loras.prepare(loras, shelf)

    def adopt(self, loras: LoraState, shelf: str) -> str:
        return self._guarded(lambda: self._loras.set_state(loras, shelf))

    def memory_bytes(self) -> int:
        if self._pipeline is None:
            return 0
        modules = [part for part in self._pipeline.components.values() if isinstance(part, torch.nn.Module)]
        return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))

    def unload(self) -> None:
        self._pipeline = self._inpainting = self._preview = None
        # They hold the pipeline too.
        for holder in ("_caller", "_loras"):
            self.__dict__.pop(holder, None)
        gc.collect()
        devices.free_memory(self._device)

    def _limits(self) -> Limits:
        """The bounds among the model's options. Raises LoadFailed for anything else among them."""
        try:
            return Limits(**self._model.options)  # type: ignore[arg-type]
        except TypeError as error:
            raise LoadFailed(
                f"{self._model.id}: {', '.join(self._model.options)}: not options of a pipeline"
            ) from error

    def _card(self, revision: str, said: Manifest | None) -> ModelCard:
        family = self._family
        paints = family.inpainting is not None
        return ModelCard(
            family=family.name,
            revision=revision,
            tasks=(
                "generate",
                *(("edit",) if family.max_images else ()),
                *(("inpaint", "variation") if paints else ()),
            ),
            sizes=self._caller.sizes,
            steps=said.defaults.steps if said else family.steps,
            max_steps=family.max_steps,
            guidance=said.defaults.guidance if said else family.guidance,
            max_guidance=family.max_guidance,
            negative_prompt=family.negative_prompt != "none",
            # A small model was taught with one picture to look at.
            max_images=1 if said else family.max_images,
            max_masked_images=1 if said else family.max_masked_images,
            strength=family.strength,
            scheduler=family.scheduler,
            max_batch=family.max_batch,
            vocabulary=_words(said) if said else (),
        )

    def _images(
        self,
        call: Call,
        seeds: Sequence[int],
        on_step: Callable[[int], None],
        on_preview: OnPreview | None = None,
        previews: int = 0,
    ) -> list[Pixels]:
        """The finished pixels of each seed, as drawn in one call. What `on_step` raises passes through."""
        used = self._inpainting if call.inpainting else self._pipeline
        due = preview_steps(call.steps, previews) if self._preview else {}

        def after_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            try:
                on_step(index + 1)
            except BaseException:
                # The pipeline would do this at its own end, which it does not reach now.
                pipeline.maybe_free_model_hooks()
                raise
            if (number := due.get(index + 1)) is not None and self._preview and on_preview:
                latents = UNPACK[self._family.latents](pipeline, pipeline.scheduler.clean()[0], call.size)
                on_preview(number, self._preview.colours(latents))
            return {}

        with torch.inference_mode():
            pictures = used(
                **call.arguments,
                # Noise drawn on the CPU is the same on every device.
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=["latents"],
                output_type="pt",
            ).images
            if not pictures.isfinite().all():
                raise InvalidOutput("the pipeline made a picture with NaN or infinity in it")
            # To bytes on the device: a quarter of the data crosses. In float32: bfloat16 has no steps of 1/255.
            scaled = pictures.float().mul(255).round().clamp(0, 255).to(torch.uint8)
            return list(scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy())

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


def _sibling(pipeline: Any, name: str) -> Any:
    """Another pipeline of the same modules. Not by `from_pipe`: that casts them to float32, for the first one too."""
    sibling = getattr(diffusers, name)(**pipeline.components, is_distilled=pipeline.config.is_distilled)
    sibling.set_progress_bar_config(disable=True)
    return sibling


def _words(said: Manifest) -> tuple[str, ...]:
    known = said.vocabulary
    return (*known.shapes, *known.colours, *known.positions, *known.sizes)
