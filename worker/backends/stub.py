"""A backend without torch whose pictures tell what they were made from, and which fails when told to.

It is the door for tests, demonstrations and benchmarks. A picture is a pure function of the model, its LoRA state, the
seed, the parameters and the pictures given: an emblem drawn from their hash, with all of that in its first bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.cards import ModelCard, Size, SizeRule
from shared.errors import AdapterMisfit, JobFailed, LoadFailed, LoraFailed, OutOfMemory
from shared.loras import NO_LORAS, Adapter, LoraState
from shared.messages import Device, Match, Run, Tokens, WantedModel
from worker import images
from worker.backends import Inputs, OnPreview, OnStep, Picture, preview_steps
from worker.backends.stub_options import Options
from worker.loras import shelf as shelves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

DEFAULT = Size(width=512, height=512)
_HEARTBEAT_SECONDS = 0.05
_GATE_POLL_SECONDS = 0.005
_EXIT_CODE = 70
_SLOW = 10
# So that any prompt fits into the smallest picture; the hash beside it tells two long ones apart.
_TEXT_KEPT = 200
# What ends the name of the first of the two tensors that change a layer.
_DOWN = (".lora_A.", ".lora_down.", ".lora.down.")
_LENGTH_AND_CRC = struct.Struct(">II")


class Stub:
    """The Backend that needs nothing; see Options for what it can be told."""

    def __init__(self, model: WantedModel, device: Device) -> None:
        self._model = model
        self._options = Options()
        self._constant = b""
        # What stands for weights: adopting fails half-way through them, and a picture tells what they are.
        self._loras = NO_LORAS
        self._shelf = ""
        self._struck = False
        self._adopt_failures = 0

    def load(self) -> ModelCard:
        options = self._options = Options.of(self._model)
        time.sleep(options.load_seconds)
        if options.exit_load:
            os._exit(_EXIT_CODE)
        if options.fail_load:
            raise LoadFailed(f"{self._model.id} was told to fail at loading")
        sizes = SizeRule(default=DEFAULT)
        if options.constant:
            self._constant = images.encode(_noise(), "png")
            sizes = SizeRule(default=DEFAULT, allowed=(DEFAULT,))
        return ModelCard(
            family="stub",
            revision="1",
            tasks=("generate",) if options.constant else ("generate", "edit", "inpaint", "variation"),
            max_images=0 if options.constant else 16,
            max_masked_images=0 if options.constant else 16,
            transparent=not options.constant,
            scheduler="euler",
            max_batch=options.batch,
            sizes=sizes,
            steps=options.steps,
            max_steps=1000,
            guidance=4.0,
            max_guidance=30.0,
            negative_prompt=True,
            description="Draws an emblem of the request; needs no model and no GPU.",
        )

    def generate(self, run: Run, inputs: Inputs, on_step: OnStep, on_preview: OnPreview) -> list[Picture]:
        overlay = self._overlay(run)
        pictures = []
        steps = run.parameters.steps
        total = steps * len(run.seeds)
        due = preview_steps(steps, run.previews)
        for place, seed in enumerate(run.seeds):
            picture = self._picture(run, inputs, seed)
            for step in range(1, steps + 1):
                self._step(run, place * steps + step, total, on_step)
                on_step(place * steps + step, total)
                if step in due and picture.pixels is not None:
                    on_preview(place * run.previews + due[step], _unfinished(picture.pixels, step / steps))
            pictures.append(picture)
        if overlay and self._strikes(self._options.fail_overlay, overlay):
            self._loras = LoraState(adapters=overlay)
            raise LoraFailed(f"{self._model.id} was told to leave a run's LoRAs behind")
        return pictures

    def generate_together(self, runs: Sequence[Run], on_step: OnStep) -> list[Picture]:
        assert all(run.loras == runs[0].loras for run in runs)
        self._overlay(runs[0])
        steps = runs[0].parameters.steps
        for step in range(1, steps + 1):
            for run in runs:
                # The faults of each; the time is that of one, as on a device that has room for more.
                self._step(run, step, steps, on_step, waits=run is runs[0])
            on_step(step, steps)
        return [self._picture(run, Inputs(), seed) for run in runs for seed in run.seeds]

    def prepare(self, loras: LoraState, shelf: str) -> tuple[Match, ...]:
        time.sleep(self._options.prepare_seconds)
        if self._strikes(self._options.exit_prepare, loras.adapters):
            os._exit(_EXIT_CODE)
        if self._strikes(self._options.fail_prepare, loras.adapters):
            raise AdapterMisfit(f"{self._model.id} was told to refuse {loras.adapters[0].name}")
        return tuple(_match(adapter, shelf) for adapter in loras.adapters)

    def adopt(self, loras: LoraState, shelf: str) -> str:
        self._loras, self._shelf = NO_LORAS, shelf
        time.sleep(self._options.adopt_seconds)
        for adapter in loras.adapters:
            _match(adapter, shelf)
        if self._strikes(self._options.exit_adopt, loras.adapters):
            os._exit(_EXIT_CODE)
        if self._strikes(self._options.fail_adopt, loras.adapters):
            most = self._options.fail_adopt_times
            self._adopt_failures += 1
            if not most or self._adopt_failures <= most:
                self._loras = loras.model_copy(update={"adapters": loras.adapters[:1]})
                raise LoraFailed(f"{self._model.id} was told to fail with {loras.adapters[0].name}")
        self._loras = loras
        return sha256(f"{self._model.source} {loras.digest}")[:16]

    def memory_bytes(self) -> int:
        return len(self._constant)

    def unload(self) -> None:
        self._constant = b""

    def _overlay(self, run: Run) -> tuple[Adapter, ...]:
        """The LoRAs that a run brings along, from the shelf as any others."""
        for adapter in run.loras or ():
            _match(adapter, self._shelf)
        return run.loras or ()

    def _strikes(self, word: str, adapters: Sequence[Adapter]) -> bool:
        """Whether a fault of a LoRA comes now; where only one replica is to have it, it keeps it once it has it."""
        if not any(_has(adapter.name, word) for adapter in adapters):
            return False
        if self._options.struck and not self._struck:
            try:
                os.unlink(self._options.struck)
            except FileNotFoundError:
                return False
            self._struck = True
        return True

    def _step(self, run: Run, step: int, total: int, on_step: OnStep, *, waits: bool = True) -> None:
        """One step's wait and faults. A wait repeats the last step, so that it can be cancelled and is no progress."""
        options, prompt, heard = self._options, run.parameters.prompt, time.monotonic()
        ends = heard + options.step_seconds * waits * (_SLOW if _has(prompt, options.slow) else 1)
        gate = Path(options.gate) if options.gate else None
        while (closed := gate is not None and not gate.exists()) or time.monotonic() < ends:
            if time.monotonic() - heard >= _HEARTBEAT_SECONDS:
                on_step(step - 1, total)
                heard = time.monotonic()
            left = ends - time.monotonic()
            time.sleep(_GATE_POLL_SECONDS if closed else max(0.0, min(left, _HEARTBEAT_SECONDS)))
        if step == options.exit_at_step or _has(prompt, options.poison):
            os._exit(_EXIT_CODE)
        if step == options.hang_at_step or _has(prompt, options.hang):
            threading.Event().wait()
        if step == options.oom_at_step or _has(prompt, options.oom):
            raise OutOfMemory(f"{self._model.id} was told to run out of memory at step {step}")
        if step == options.fail_at_step:
            raise JobFailed(f"{self._model.id} was told to fail at step {step}")

    def _picture(self, run: Run, inputs: Inputs, seed: int) -> Picture:
        asked = run.parameters
        size = Size(width=asked.width, height=asked.height)
        tokens = Tokens(
            text=len(asked.prompt.split()),
            image_in=sum(_tokens(pixels.shape[1], pixels.shape[0]) for pixels in inputs.images),
            image_out=_tokens(size.width, size.height),
        )
        if _has(asked.prompt, self._options.garbage):
            return Picture(seed, encoded=b"no picture", tokens=tokens)
        if self._constant and asked.output_format == "png":
            return Picture(seed, encoded=self._constant, tokens=tokens)
        if self._constant:
            return Picture(seed, pixels=_noise(), tokens=tokens)
        pixels = _drawn(_facts(run, inputs, seed) | _told(self._loras, run), size, transparent=asked.transparent)
        if inputs.mask is not None:
            ground, mask = images.resize(inputs.images[0], size), images.resize(inputs.mask, size)
            pixels = images.laid_over(ground, pixels, mask)
        return Picture(seed, pixels=pixels, tokens=tokens)


def _has(prompt: str, word: str) -> bool:
    return bool(word) and word in prompt


def read_back(png: bytes) -> dict[str, Any]:
    """What the stub's picture in `png` was made from. Raises ValueError if it is not a whole one.

    Under a mask there is nothing to read back: the first pixels may be those of the picture that was given.
    """
    data = images.decode(png).tobytes()
    length, crc = _LENGTH_AND_CRC.unpack_from(data)
    payload = data[_LENGTH_AND_CRC.size : _LENGTH_AND_CRC.size + length]
    if len(payload) != length or zlib.crc32(payload) != crc:
        raise ValueError("these pixels are not as the stub made them")
    facts: dict[str, Any] = json.loads(payload)
    return facts


def sha256(text: str) -> str:
    """The hash under which a prompt is found in `read_back`."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _tokens(width: int, height: int) -> int:
    """As many as there are squares of 16 by 16."""
    return -(-width // 16) * -(-height // 16)


def _facts(run: Run, inputs: Inputs, seed: int) -> dict[str, Any]:
    asked = run.parameters
    facts = {
        "model": run.model,
        "task": run.task,
        "epoch": run.epoch,
        "digest": run.digest,
        "seed": seed,
        "width": asked.width,
        "height": asked.height,
        "steps": asked.steps,
        "guidance": asked.guidance,
        "prompt": asked.prompt[:_TEXT_KEPT],
        "prompt_sha256": sha256(asked.prompt),
        "negative_prompt": asked.negative_prompt[:_TEXT_KEPT],
        "negative_prompt_sha256": sha256(asked.negative_prompt),
    }
    if asked.strength is not None:
        facts["strength"] = asked.strength
    if inputs.images:
        facts["images"] = [hashlib.sha256(pixels.tobytes()).hexdigest()[:8] for pixels in inputs.images]
    return facts


def _told(loras: LoraState, run: Run) -> dict[str, Any]:
    """The LoRAs that made a picture: those of the state, with the scale that they have in it, or the run's own."""
    used = loras if run.loras is None else LoraState(adapters=run.loras)
    return {
        "loras": {
            "mode": used.mode,
            "adapters": [[each.sha256, scale, each.target] for each, scale in used.effective()],
            "merge_target": used.merge_target,
            "overlay": run.loras is not None,
        }
    }


def _match(adapter: Adapter, shelf: str) -> Match:
    """Each pair of tensors is a layer that fits. Raises InvalidAdapter, UnknownAdapter or AdapterMisfit."""
    header = shelves.read(shelf, adapter.sha256).header
    layers = {name.partition(mark)[0] for name in header.tensors for mark in _DOWN if mark in name}
    part = {name: "text_encoder" if name.startswith("text_encoder.") else "transformer" for name in layers}
    counts = {each: list(part.values()).count(each) for each in set(part.values()) if adapter.target in ("all", each)}
    if not counts:
        raise AdapterMisfit(f"LoRA {adapter.name} changes nothing here")
    size = sum(tensor.end - tensor.begin for tensor in header.tensors.values())
    return Match(sha256=adapter.sha256, matched=counts, bytes=size)


def _drawn(facts: dict[str, Any], size: Size, *, transparent: bool) -> Pixels:
    """An emblem of 8 by 8 squares, the right half mirroring the left, with the facts in the first bytes.

    A transparent one has its ground clear and its squares opaque. Where a side is no multiple of 8, the last squares
    are cut.
    """
    payload = json.dumps(facts, separators=(",", ":")).encode()
    code = np.frombuffer(hashlib.sha256(payload).digest(), np.uint8)
    half = np.unpackbits(code[:4]).reshape(8, 4)
    squares = np.concatenate((half, half[:, ::-1]), axis=1)
    colours = np.stack((code[4:7] // 4 + 192, code[7:10] // 2))
    if transparent:
        colours = np.concatenate((colours, np.array([[0], [255]], np.uint8)), axis=1)
    rows, columns = -(-size.height // 8), -(-size.width // 8)
    enlarged = colours[squares].repeat(columns, axis=1).repeat(rows, axis=0)
    pixels: Pixels = np.ascontiguousarray(enlarged[: size.height, : size.width])
    written = _LENGTH_AND_CRC.pack(len(payload), zlib.crc32(payload)) + payload
    if len(written) <= pixels.size:
        pixels.reshape(-1)[: len(written)] = np.frombuffer(written, np.uint8)
    return pixels


def _unfinished(pixels: Pixels, share: float) -> Pixels:
    """The picture as it may look when this share of its steps is done: an eighth of the size, paler the earlier."""
    small = pixels[::8, ::8, :3].astype(np.float32)
    return (128 + (small - 128) * share).astype(np.uint8)


def _noise() -> Pixels:
    """Four random bits a value: a PNG of half the size of its pixels."""
    shape = (DEFAULT.height, DEFAULT.width, 3)
    return np.random.default_rng(0).integers(0, 16, shape, dtype=np.uint8) * np.uint8(16)
