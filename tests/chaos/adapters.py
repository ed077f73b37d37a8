"""The LoRAs of a storm: which there are, what each does to a stub, and how a state of them shows in a picture."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

from shared.loras import NO_LORAS, Adapter, LoraState, Target
from tests.adapters import layers

# One of these models has LoRAs that a single replica has trouble with, the other one that none can follow.
STRUCK, DOOMED = "stub", "twin"
MODELS = (STRUCK, DOOMED)
# What a replica that takes the file `struck` does with a LoRA of this name.
FAULTS = {
    "refused": "fail_prepare",
    "deadly": "exit_prepare",
    "broken": "fail_adopt",
    "fatal": "exit_adopt",
    "leaky": "fail_overlay",
}
PLAIN = ("ink", "oil", "wash")
CONTENT = {
    name: layers(seed, parts=("transformer", "text_encoder") if name == "oil" else ("transformer",))
    for seed, name in enumerate((*PLAIN, *FAULTS, "doomed"))
}
SHA256 = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
_TARGETS: tuple[Target, ...] = ("all", "all", "transformer")


def lay(folder: Path) -> None:
    """Put their files there."""
    folder.mkdir()
    for name, data in CONTENT.items():
        (folder / path(name)).write_bytes(data)


def path(name: str) -> str:
    """Its file, below the folder."""
    return f"{name}.safetensors"


def struck(folder: Path) -> Path:
    """While this file lies there, the next replica that meets a LoRA with a fault takes it, and has the fault."""
    return folder / "struck"


def faults(folder: Path) -> dict[str, str]:
    """The options that a stub has for them, by its model."""
    words = "&".join(f"{option}={name}" for name, option in FAULTS.items())
    return {STRUCK: f"{words}&struck={struck(folder)}", DOOMED: "fail_adopt=doomed"}


def one(name: str, dice: Random) -> LoraState:
    """This LoRA alone, by the dice."""
    return LoraState(adapters=(_adapter(name, dice),))


def some(dice: Random, most: int) -> LoraState:
    """So many of those without a fault, if so many there are; none is a state as well."""
    return LoraState(adapters=tuple(_adapter(name, dice) for name in dice.sample(PLAIN, most)))


def _adapter(name: str, dice: Random) -> Adapter:
    scale = round(dice.uniform(-2.0, 2.0), 3)
    return Adapter(name=name, sha256=SHA256[name], scale=scale, target=dice.choice(_TARGETS))


def asked(own: LoraState) -> list[dict[str, Any]]:
    """These as a request brings them along."""
    return [{"path": path(each.name), "scale": each.scale, "target": each.target} for each in own.adapters]


def shown(state: LoraState, *, overlay: bool = False) -> dict[str, Any]:
    """What a picture says of itself that was made in this state, or with these as an overlay."""
    return {
        "mode": state.mode,
        "adapters": [[each.sha256, scale, each.target] for each, scale in state.effective()],
        "merge_target": state.merge_target,
        "overlay": overlay,
    }


def of_view(wanted: dict[str, Any]) -> LoraState:
    """The state in what an answer tells as `wanted`."""
    kept = {key: wanted[key] for key in ("mode", "merge_scale", "merge_target") if key in wanted}
    own = [{key: value for key, value in each.items() if key != "match"} for each in wanted["adapters"]]
    return LoraState.model_validate({**kept, "adapters": own}, strict=False) if own else NO_LORAS
