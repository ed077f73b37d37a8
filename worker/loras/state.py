"""The LoRA state of one loaded pipeline: what is asked of it beside a run, and the only way its weights change.

Weights are a function of the state alone. Whatever goes wrong on the way, they are taken back to the base's own, and
the state is in doubt until it is set again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared import logs
from shared.errors import AdapterMisfit, LoraFailed, OutOfMemory
from shared.loras import MAX_SCALE, NO_LORAS, Adapter, LoraState
from shared.messages import Match
from worker.loras import shelf
from worker.loras.attached import Active, Attached
from worker.loras.cache import Cache
from worker.loras.checksum import Checksum, total
from worker.loras.fitting import Fitted, Layer, device_bytes, fit, match, slots_of
from worker.loras.merged import Deltas, Merged

log = logs.get("loras")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in bytes: of LoRAs on the device, of LoRAs in host memory, and of weights kept aside while merged."""

    max_adapter_bytes: int = 4 << 30
    max_host_bytes: int = 8 << 30
    max_pristine_bytes: int = 16 << 30


class Loras:
    """`prepare` may be called from any thread, also while the pipeline runs; all else from the one that runs it.

    `folder` is where the pipeline was loaded from: what does not fit into the bound is read from there again.
    """

    def __init__(self, pipeline: Any, folder: Path | None, limits: Limits | None = None) -> None:
        names = getattr(pipeline, "_lora_loadable_modules", ())
        found = {name: getattr(pipeline, name, None) for name in names}
        self._parts = {name: part for name, part in found.items() if isinstance(part, torch.nn.Module)}
        self._pipeline = pipeline
        self._limits = limits or Limits()
        self._slots = slots_of(self._parts)
        self._cache = Cache(self._limits.max_host_bytes)
        self._attached = Attached(self._parts, self._slots, self._limits.max_adapter_bytes)
        self._merged = Merged(self._parts, self._slots, folder, self._limits.max_pristine_bytes)
        self._checksum = Checksum()
        self._base = self._sums({(part, name) for part, inside in self._slots.items() for name in inside})
        self._now = dict(self._base)
        self._state, self._shelf = NO_LORAS, ""
        self._fingerprint = total(self._now.values())
        # Those of the state: they stay at hand while it is, whatever becomes of the cache.
        self._used: dict[str, Fitted] = {}
        self._sound = True

    @property
    def bytes(self) -> int:
        """What LoRAs take on the device."""
        return self._attached.bytes

    def fingerprint(self) -> str:
        """A checksum of every weight that a LoRA may touch and of all LoRAs beside them, as they were last changed."""
        return self._fingerprint

    def prepare(self, state: LoraState, shelf_folder: str) -> tuple[Match, ...]:
        """Read, match and measure the LoRAs of a state; nothing is moved. Raises what would keep it from being set."""
        if state.mode == "merged" and state.merge_target != "all" and state.merge_target not in self._parts:
            raise AdapterMisfit(f"this model has no {state.merge_target} that LoRAs can be merged into")
        used = self._read(state.adapters, shelf_folder)
        matches = tuple(match(adapter, used[adapter.sha256], self._slots) for adapter in state.adapters)
        active, deltas = self._plan(state, used)
        self._merged.expect(deltas)
        self._expect_room(self._expect_bound(active, used))
        return matches

    def set_state(self, state: LoraState, shelf_folder: str) -> str:
        """Bring the weights into this state; its fingerprint. Where that fails they are the base's, and in doubt."""
        used = self._read(state.adapters, shelf_folder)
        for adapter in state.adapters:
            match(adapter, used[adapter.sha256], self._slots)
        doubted, self._sound = not self._sound, False
        if doubted:
            self._start_afresh()
        try:
            self._apply(*self._plan(state, used), used)
        except BaseException:
            # What this raises is told in place of the other: weights that cannot be had back are the worse of the two.
            self._start_afresh()
            raise
        self._state, self._shelf, self._used = state, shelf_folder, used
        self._sound = True
        return self._fingerprint

    @contextlib.contextmanager
    def overlay(self, adapters: Sequence[Adapter] | None) -> Iterator[None]:
        """Have these, attached, in place of the state's while this is open; with None, the state's own.

        Raises LoraFailed where the state could not be brought back, or was in doubt before.
        """
        if not self._sound:
            raise LoraFailed("the weights are in doubt")
        if adapters is None:
            yield
            return
        own = LoraState(adapters=tuple(adapters))
        used = self._read(own.adapters, self._shelf)
        for adapter in own.adapters:
            match(adapter, used[adapter.sha256], self._slots)
        active, deltas = self._plan(own, used)
        self._expect_bound(active, used)
        before = self._fingerprint
        self._sound = False
        try:
            self._apply(active, deltas, used)
            yield
        finally:
            try:
                self._apply(*self._plan(self._state, self._used), self._used)
            except Exception as error:
                raise LoraFailed(f"a run's LoRAs could not be taken back: {type(error).__name__}") from error
            if self._fingerprint != before:
                raise LoraFailed("the weights are not what they were before a run brought its LoRAs along")
            self._sound = True

    def _read(self, adapters: Sequence[Adapter], shelf_folder: str) -> dict[str, Fitted]:
        if adapters and not self._parts:
            raise AdapterMisfit("this model's pipeline takes no LoRAs")
        for adapter in adapters:
            if not math.isfinite(adapter.scale) or abs(adapter.scale) > MAX_SCALE:
                raise AdapterMisfit(f"{adapter.name}: its scale is not between {-MAX_SCALE:g} and {MAX_SCALE:g}")

        def found(sha256: str) -> Fitted:
            return fit(shelf.read(shelf_folder, sha256), sha256, self._pipeline, self._slots)

        return {each.sha256: self._cache.get(each.sha256, found) for each in adapters}

    def _expect_bound(self, active: Active, used: dict[str, Fitted]) -> int:
        """The bytes that these take attached, all together. Raises OutOfMemory where they are more than may be held."""
        beside = {sha256 for each in active.values() for sha256, _ in each}
        size = sum(device_bytes(used[sha256].layers, self._slots) for sha256 in beside)
        if size > self._limits.max_adapter_bytes:
            raise OutOfMemory(f"these LoRAs take {size} bytes; at most {self._limits.max_adapter_bytes} are held")
        return size

    def _plan(self, state: LoraState, used: dict[str, Fitted]) -> tuple[Active, Deltas]:
        """What is attached to each part, and what is added to its weights; one with no effect is neither."""
        scales: dict[str, dict[str, float]] = {part: {} for part in self._parts}
        for adapter, scale in state.effective():
            for part in used[adapter.sha256].within(adapter.target):
                scales[part][adapter.sha256] = scales[part].get(adapter.sha256, 0.0) + scale
        active: dict[str, tuple[tuple[str, float], ...]] = {}
        deltas: dict[str, dict[str, list[tuple[Layer, float]]]] = {}
        for part, wanted in scales.items():
            effective = tuple((sha256, scale) for sha256, scale in wanted.items() if scale)
            if state.mode == "attached" or state.merge_target not in ("all", part):
                active[part] = effective
                continue
            for sha256, scale in effective:
                for name, layer in used[sha256].layers[part].items():
                    deltas.setdefault(part, {}).setdefault(name, []).append((layer, scale))
        return active, deltas

    def _apply(self, active: Active, deltas: Deltas, used: dict[str, Fitted]) -> None:
        """Have exactly this, and know its fingerprint. Raises LoraFailed where a weight was not restored to the bit."""
        before = self._merged.touched
        # First what gives memory back.
        self._attached.activate({}, {})
        self._merged.write(deltas)
        self._attached.activate(active, used)
        self._note(before | self._merged.touched)

    def _note(self, changed: frozenset[tuple[str, str]]) -> None:
        self._now |= self._sums(changed)
        for place in changed - self._merged.touched:
            if self._now[place] != self._base[place]:
                raise LoraFailed(f"{place[0]}.{place[1]} is not what it was when the model was loaded")
        self._fingerprint = total([*self._now.values(), *self._attached.checksums(self._checksum)])

    def _start_afresh(self) -> None:
        """The base's own weights, and no LoRA on the device. Raises LoraFailed where that is not so to the bit."""
        try:
            self._attached.detach_all()
            self._merged.restore()
        except Exception as error:
            raise LoraFailed(f"the model's own weights cannot be had back: {type(error).__name__}") from error
        self._note(frozenset(self._base))

    def _sums(self, places: frozenset[tuple[str, str]] | set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        named = {f"{part}.{name}": (part, name) for part, name in sorted(places)}
        found = self._checksum.of((said, self._merged.weights[part][name]) for said, (part, name) in named.items())
        return {named[said]: number for said, number in found.items()}

    def _expect_room(self, size: int) -> None:
        """Raises OutOfMemory where the device has less left than these LoRAs take besides those that are there."""
        device = next((part.device for part in self._parts.values() if part.device.type == "cuda"), None)
        if device is None:
            return
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if size - self._attached.bytes > free:
            raise OutOfMemory(f"these LoRAs take {size} bytes; {free} are left on the device")
