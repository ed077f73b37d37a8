"""Changes of a model's LoRAs as a storm asks for them: drawn from dice, sent, and what each makes of a state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from shared.loras import NO_LORAS, LoraState
from tests.chaos import adapters

if TYPE_CHECKING:
    from tests.chaos.history import Life

Kind = Literal["set", "merge", "unmerge", "unload"]
KINDS: dict[Kind, str] = {
    "set": "/v1/set_lora",
    "merge": "/v1/merge_lora_weights",
    "unmerge": "/v1/unmerge_lora_weights",
    "unload": "/v1/unload_lora",
}
# Of a change that is drawn among several.
_WEIGHTS: dict[Kind, int] = {"set": 4, "merge": 2, "unmerge": 2, "unload": 1}
_CAREFUL = 0.2


@dataclass(frozen=True)
class Held:
    """What is decided for a model: its state, and the hashes of what it has nicknames for."""

    state: LoraState = NO_LORAS
    names: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Order:
    """One change of a model's LoRAs. A `careful` one is only for the epoch that is known when it is sent.

    `loras` are those it sets; `name` is the nickname it unloads.
    """

    kind: Kind
    model: str
    body: dict[str, Any]
    loras: LoraState = NO_LORAS
    name: str = ""
    careful: bool = False

    def __str__(self) -> str:
        names = ", ".join(each.name for each in self.loras.adapters) or self.name
        return f"{self.kind} {names} on {self.model}".replace("  ", " ")

    def brings(self, name: str) -> bool:
        """Whether it sets this LoRA."""
        return any(each.name == name for each in self.loras.adapters)

    def effect(self, held: Held) -> Held | None:
        """What it makes of this; None where that cannot be done. This is its own account, not the gateway's code."""
        state = held.state
        match self.kind:
            case "set":
                mine = {each.name: each.sha256 for each in self.loras.adapters}
                return Held(self.loras, frozenset((dict(held.names) | mine).items()))
            case "merge" if state.adapters:
                update = {"mode": "merged", "merge_scale": self.body["strength"], "merge_target": self.body["target"]}
                return replace(held, state=state.model_copy(update=update))
            case "unmerge":
                return replace(held, state=LoraState(adapters=state.adapters))
            case "unload":
                if self.name not in dict(held.names):
                    return None
                kept = tuple(each for each in state.adapters if each.name != self.name)
                state = state.model_copy(update={"adapters": kept}) if kept else NO_LORAS
                return Held(state, frozenset(pair for pair in held.names if pair[0] != self.name))
        return held


@dataclass
class Command:
    """An order that was sent, to which gateway, and what came of it: `told` is its answer, `broken` why there is none.

    `only` is the epoch that it was for, if it was for one alone.
    """

    order: Order
    life: Life
    sent: float
    only: int | None = None
    ended: float | None = None
    status: int = 0
    code: str = ""
    retry_after: bool = False
    told: dict[str, Any] = field(default_factory=dict)
    broken: str = ""

    @property
    def outcome(self) -> str:
        """`open`, `disconnected`, the code of an error, or how its answer calls its result."""
        if self.ended is None:
            return "open"
        return "disconnected" if self.broken else self.code or str(self.told.get("result"))


def setting(model: str, loras: LoraState, dice: Random) -> Order:
    """Have these and no others."""
    own = loras.adapters
    body = {
        "lora_nickname": [each.name for each in own],
        "lora_path": [adapters.path(each.name) for each in own],
        "strength": [each.scale for each in own],
        "target": [each.target for each in own],
    }
    return _order("set", model, body if own else {"lora_nickname": []}, dice, loras=loras)


def draw(dice: Random, kind: Kind | None = None, *, most: int = 2, model: str = "") -> Order:
    """An order by the dice, of this kind or any; `most` LoRAs are set."""
    kind = kind or dice.choices([*_WEIGHTS], [*_WEIGHTS.values()])[0]
    model = model or dice.choice(adapters.MODELS)
    match kind:
        case "set":
            return setting(model, adapters.some(dice, most), dice)
        case "merge":
            body = {"strength": round(dice.uniform(0.1, 2.0), 3), "target": dice.choice(("all", "transformer"))}
            return _order(kind, model, body, dice)
        case "unload":
            name = dice.choice((*adapters.PLAIN, *adapters.FAULTS))
            return _order(kind, model, {"lora_nickname": name}, dice, name=name)
    return _order(kind, model, {}, dice)


def _order(
    kind: Kind, model: str, body: dict[str, Any], dice: Random, *, loras: LoraState = NO_LORAS, name: str = ""
) -> Order:
    said = body | {"model": model, "wait": dice.choice(("all", "all", "first", "none"))}
    return Order(kind, model, said, loras, name, careful=dice.random() < _CAREFUL)


async def send(http: httpx2.AsyncClient, command: Command) -> None:
    """Send it, and take down its answer. What httpx2 raises passes through."""
    order = command.order
    only = {} if command.only is None else {"if_epoch": command.only}
    response = await http.post(KINDS[order.kind], json=order.body | only)
    command.status, told = response.status_code, response.json()
    command.retry_after = response.headers.get("retry-after", "").isdecimal()
    if command.status in (200, 202):
        command.told = told
    else:
        command.code = str(told["error"]["code"])
