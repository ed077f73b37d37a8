"""The LoRA state of a model as content, never as operations: equal states give equal weights, whatever came before.

An adapter is its file's sha256; a name is for people. `merge` and `unmerge` only change the mode: merged and attached
round differently, so that the mode is part of the state.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from shared.cards import Part

Mode = Literal["attached", "merged"]

# Which parts of a pipeline an adapter acts on; what it has for others is left aside.
Target = Literal["all", "transformer", "unet", "text_encoder", "text_encoder_2"]

MAX_SCALE = 8.0
MAX_ADAPTERS = 16


class Adapter(Part):
    """One LoRA of a state: `sha256` of its safetensors file, `scale` times its own alpha / rank, and where it acts."""

    name: str
    sha256: str
    scale: float = 1.0
    target: Target = "all"


class LoraState(Part):
    """What is active on a model. While merged, every scale is times `merge_scale`, and only `merge_target` is merged.

    Outside of `merge_target` adapters stay attached. While attached, neither of the two has a meaning, and they have
    their defaults.
    """

    mode: Mode = "attached"
    adapters: tuple[Adapter, ...] = ()
    merge_scale: float = 1.0
    merge_target: Target = "all"

    @property
    def digest(self) -> str:
        """sha256 of what of this state makes a difference to weights, in canonical JSON: names do not."""
        content = {
            "adapters": [[each.sha256, each.scale, each.target] for each in self.canonical()],
            "merge": [self.merge_scale, self.merge_target],
            "mode": self.mode,
        }
        return hashlib.sha256(json.dumps(content, separators=(",", ":"), sort_keys=True).encode()).hexdigest()

    def canonical(self) -> tuple[Adapter, ...]:
        """The adapters in the one order in which they are added up, whatever the order they were asked for in."""
        return tuple(sorted(self.adapters, key=lambda each: (each.sha256, each.target, each.scale)))

    def effective(self) -> tuple[tuple[Adapter, float], ...]:
        """The adapters in their canonical order, each with the scale that counts."""
        factor = self.merge_scale if self.mode == "merged" else 1.0
        return tuple((each, each.scale * factor) for each in self.canonical())


NO_LORAS = LoraState()
