"""A worker's session as both sides know it: what was said, what is in the worker's hands, and whether it is well."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.dispatch import AHEAD
from gateway.limits import Limits
from shared import messages as m
from tests.unit.world import PNG, Puppet

SLOTS = 1
NO_PICTURE = b"no picture"


def picture(seed: int) -> bytes:
    """What a worker that draws this seed delivers."""
    return PNG + b"%d" % seed


@dataclass(eq=False)
class Hand:
    """A run in a worker's hands, and whether its device has begun it."""

    run: m.Run
    begun: bool = False


@dataclass(eq=False)
class Session:
    """`owed` are the runs that it has not told the end of, and whether each was called off."""

    puppet: Puppet
    id: str
    hands: dict[str, Hand]
    owed: dict[tuple[str, int], bool] = field(default_factory=dict)
    acked: int = -1
    holds: frozenset[str] = frozenset()
    ready: bool = False
    draining: bool = False
    heard: bool = True
    missed: int = 0
    applying: int = 0
    still: int = 0
    steps: int = 0
    seen: int = 0
    asked: int = -1

    def serves(self, model: str) -> bool:
        """Whether it is ready to draw with this model, in step or not."""
        return self.ready and not self.draining and model in self.holds

    def has_room(self, model: str, version: int, limits: Limits, *, alone: bool) -> bool:
        """Whether it may be handed a job now; one that has cost a worker its life runs `alone`."""
        idle = self.serves(model) and self.acked == version and self.missed < limits.suspect_after
        return idle and len(self.hands) < (SLOTS if alone else SLOTS + AHEAD)

    def listen(self, message: m.Message, version: int) -> None:
        """What it says of itself."""
        self.heard, self.missed = True, 0
        match message:
            case m.Ack():
                self.acked = message.version
                self.holds = frozenset(outcome.model for outcome in message.outcomes if outcome.card)
                self.ready |= message.version == version
            case m.Pong():
                self.steps = message.steps
            case m.Drain():
                self.draining = True

    def hand_of(self, message: m.Progress | m.Done | m.Failed, attachments: tuple[bytes, ...]) -> Hand | None:
        """What it says of a run: the hand that is meant, if it is that attempt's, as it was before."""
        hand = self.hands.get(message.job)
        if not isinstance(message, m.Progress):
            self.owed.pop((message.job, message.attempt), None)
        if hand is None or hand.run.attempt != message.attempt:
            return None
        good = attachments != (NO_PICTURE,)
        if isinstance(message, m.Progress):
            hand.begun |= message.preview is None or (good and message.preview < hand.run.previews)
        elif good:
            del self.hands[message.job]
        return hand

    def pass_tick(self, version: int, punctual: bool) -> None:
        """A ping interval passes."""
        applying = self.applies(version)
        moved, self.seen = self.steps != self.seen, self.steps
        self.applying = self.applying + 1 if applying else 0
        if punctual:
            self.missed = 0 if self.heard else self.missed + 1
        if moved or applying or not self.hands:
            self.still, self.asked = 0, -1
        else:
            self.still += punctual
            self.asked += punctual and self.asked >= 0
        self.heard = False

    def applies(self, version: int) -> bool:
        """Whether it brings itself into a newer state: not before it has finished what it has begun."""
        return self.acked != version and not any(hand.begun for hand in self.hands.values())

    def stands_still(self, limits: Limits) -> bool:
        """Whether its device has shown no step for longer than it may."""
        return self.still * limits.ping_seconds > limits.stuck_seconds

    def ails(self, version: int, limits: Limits) -> set[str]:
        """Why time alone may take it, and must."""
        if self.applies(version):
            return {"load_timeout"} if self.applying * limits.ping_seconds > limits.load_seconds else set()
        silent = {"silent"} if self.missed >= limits.gone_after else set()
        return silent | ({"stuck"} if self.asked >= limits.gone_after else set())

    def running(self) -> list[Hand]:
        """What its device is about: what it has begun, or else what it was handed first."""
        hands = list(self.hands.values())
        return [hand for hand in hands if hand.begun] or hands[:SLOTS]
