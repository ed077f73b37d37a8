"""What a command makes of a model's LoRA state: pure functions from state to state, so that each may be said twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gateway.store.epochs import Nickname
from shared.errors import BadInput, UnknownAdapter
from shared.loras import MAX_SCALE, NO_LORAS, Adapter, LoraState, Target

# Nicknames are kept until they are unloaded; of more than so many the oldest that is not active is forgotten.
MAX_NAMES = 256


@dataclass(frozen=True, slots=True)
class Held:
    """A model's LoRA state, and the nicknames that clients have given, oldest first."""

    state: LoraState = NO_LORAS
    names: Mapping[str, Nickname] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outline:
    """One adapter as a client asked for it, its file found."""

    name: str
    file: Nickname
    scale: float
    target: Target


def activate(held: Held, asked: Iterable[Outline]) -> Held:
    """These are active from now on, attached, and nothing else: what was merged is not merged any more."""
    asked = list(asked)
    adapters = tuple(Adapter(name=o.name, sha256=o.file.sha256, scale=o.scale, target=o.target) for o in asked)
    names = {name: file for name, file in held.names.items() if name not in {o.name for o in asked}}
    names |= {outline.name: outline.file for outline in asked}
    return Held(LoraState(adapters=adapters), _bounded(names, adapters))


def merge(held: Held, scale: float, target: Target) -> Held:
    """What is active is merged, at `scale` times its strength. Nothing compounds: it is this scale, and no other.

    Raises BadInput where the two together are more than a LoRA may have.
    """
    if not held.state.adapters:
        return held
    if any(abs(adapter.scale * scale) > MAX_SCALE for adapter in held.state.adapters):
        raise BadInput(f"Invalid 'strength': with what was set it passes {MAX_SCALE:g}.", param="strength")
    update = {"mode": "merged", "merge_scale": scale, "merge_target": target}
    return replace(held, state=held.state.model_copy(update=update))


def unmerge(held: Held) -> Held:
    """What is active is attached again, with the strengths that it was set with."""
    return replace(held, state=LoraState(adapters=held.state.adapters))


def unload(held: Held, names: Iterable[str]) -> Held:
    """Forget these nicknames, and make inactive what is active by them. Raises UnknownAdapter for one there is not."""
    gone = set(names)
    for name in sorted(gone - held.names.keys()):
        raise UnknownAdapter(f"No LoRA is loaded as {name!r}.", param="lora_nickname")
    kept = tuple(adapter for adapter in held.state.adapters if adapter.name not in gone)
    state = held.state.model_copy(update={"adapters": kept}) if kept else NO_LORAS
    return Held(state, {name: file for name, file in held.names.items() if name not in gone})


def _bounded(names: dict[str, Nickname], active: tuple[Adapter, ...]) -> dict[str, Nickname]:
    used = {adapter.name for adapter in active}
    spare = [name for name in names if name not in used][: max(0, len(names) - MAX_NAMES)]
    return {name: file for name, file in names.items() if name not in spare}
