"""What becomes of a change of LoRAs, and how long it is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.ballots import Ballot
from gateway.loras.commands import Held
from gateway.loras.rows import Row
from shared import errors

Wait = Literal["all", "first", "none"]
Status = Literal["applied", "pending", "unchanged", "reverted", "aborted"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, in seconds, an answer waits for replicas to follow, and a decision stands that nobody follows."""

    answer_seconds: float = 30.0
    revert_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Command:
    """What became of the last command for a model: its epoch, and why nothing did."""

    epoch: int
    status: Status
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """The answer to a command: what it decided, or found decided, and how far each replica is by now."""

    status: Status
    model: str
    epoch: int
    held: Held
    rows: tuple[Row, ...]


def objection(model: str, ballot: Ballot) -> errors.ReplicastError:
    """What is to be told of a vote that failed: the replicas' own word where they have one, else each one's."""
    problems = list(ballot.refusals.items())
    if not problems:
        return errors.NotReady(f"No replica of {model!r} is ready to take a LoRA.", retry_after_seconds=2)
    if len({problem.code for _, problem in problems}) == 1:
        error = problems[0][1].error()
        if isinstance(error, errors.BadInput):
            return type(error)(error.message, param="lora_path")
    said = "; ".join(f"{worker}: {problem.message}" for worker, problem in problems)
    return errors.LoraRefused(f"The change is off, and nothing has moved: {said}", param="lora_path")
