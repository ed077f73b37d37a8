"""What was asked and answered in a storm, by the clients' own account, and whether the faults allow each answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from tests.chaos.wishes import TROUBLES, Answer, Wish, mistakes

# Between what a client notes and what the gateway notes.
CLOCK_SECONDS = 0.05
# A gateway has accepted what was sent to it so long ago, and has written into its log what it answered so long ago.
SETTLED_SECONDS = 0.5
# A request may take this much longer than its timeout: for a machine that others keep busy.
SLACK_SECONDS = 20.0

REFUSALS = ("queue_full", "not_ready", "draining")
# What is wrong: the first four are what no fault excuses, the rest an error that none explains, or a broken promise.
What = Literal["lost", "hung", "twice", "wrong", "unjustified", "left behind", "bug"]


@dataclass(frozen=True)
class Violation:
    """Something that may not be, about whom."""

    what: What
    who: str
    words: str

    def __str__(self) -> str:
        return f"{self.what}: {self.who}: {self.words}"


@dataclass
class Life:
    """One process of the gateway. Times are Unix seconds.

    `told` is when it was told to leave or killed, `ended` when it had ended; `retired` are the workers that it was told
    to dismiss or restart, and when; `stopped` those that stood still from then on; `log` is what it had written when it
    ended.
    """

    number: int
    began: float
    told: float | None = None
    ended: float | None = None
    drained: bool = False
    retired: list[tuple[float, str]] = field(default_factory=list)
    stopped: list[tuple[float, str]] = field(default_factory=list)
    log: str = ""

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The lines of its log, once it has ended, each with its moment as `at`; what is no JSON is left out."""
        found = []
        for line in self.log.splitlines():
            if line.startswith("{"):
                event = json.loads(line)
                found.append(event | {"at": datetime.fromisoformat(event["timestamp"]).timestamp()})
        return found

    def workers(self) -> int:
        """How many worker processes it has had."""
        return len({event["pid"] for event in self.events if event["event"] == "worker_joined"})

    def without_workers(self) -> list[tuple[float, float]]:
        """The intervals in which no worker was ready, by its log and by who was told to leave."""
        return self._gaps({"worker_ready"})

    @cached_property
    def unheard(self) -> list[tuple[float, float]]:
        """The intervals in which no worker was ready and heard: one that stood still is, when it says something new."""
        return self._gaps({"worker_ready", "worker_in_step"}, self.stopped)

    def _gaps(self, arrivals: set[str], departures: Collection[tuple[float, str]] = ()) -> list[tuple[float, float]]:
        """When nobody was there: one comes with an arrival, and goes when it is lost, retired, or departs."""
        moves = [(each["at"], each["event"], each.get("worker", "")) for each in self.events]
        moves += [(at, "retired", name) for at, name in (*self.retired, *departures)]
        there: set[str] = set()
        found, since = [], self.began
        for at, event, worker in sorted(moves):
            before = bool(there)
            if event in arrivals:
                there.add(worker)
            elif event in ("worker_lost", "retired"):
                there.discard(worker)
            if before and not there:
                since = at
            elif there and not before:
                found.append((since, at))
        return found if there else [*found, (since, float("inf"))]


@dataclass
class Entry:
    """One try at a wish: when it was sent, to which gateway, and what came of it; `ended` is None while it is open."""

    wish: Wish
    request_id: str
    life: Life
    sent: float
    ended: float | None = None
    answer: Answer | None = None
    left: bool = False
    broken: str = ""

    @property
    def outcome(self) -> str:
        """`open`, `left` by its client, `disconnected` by its gateway's end, the code of an error, or 200."""
        if self.ended is None:
            return "open"
        if self.answer is None:
            return "left" if self.left else "disconnected"
        return self.answer.code or str(self.answer.status)

    @property
    def refused(self) -> bool:
        """Whether it was turned away, with a word when to come again."""
        return self.outcome in REFUSALS

    @property
    def final(self) -> bool:
        """Whether its client need not ask again."""
        return not self.refused and self.outcome not in ("open", "disconnected")

    def beside(self, other: Entry) -> bool:
        """Whether both were with the same gateway at once; it may hear later that a client has left."""
        ends = [each.sent if each.ended is None else each.ended + SETTLED_SECONDS * each.left for each in (self, other)]
        return (
            self.life is other.life and self.sent <= ends[1] + CLOCK_SECONDS and other.sent <= ends[0] + CLOCK_SECONDS
        )


class History:
    """Every try, in the order in which they began. `max_queue` is the gateway's, in pictures of a model."""

    def __init__(self, *, timeout_seconds: float, max_queue: int) -> None:
        self.entries: list[Entry] = []
        self.lives: list[Life] = []
        self.frozen: list[tuple[float, float]] = []
        self._timeout, self._max_queue = timeout_seconds, max_queue

    def figures(self) -> Counter[str]:
        """How many tries came to what; pictures are those that clients have."""
        found = Counter(entry.outcome for entry in self.entries)
        found["pictures"] = sum(len(entry.answer.pictures) for entry in self.entries if entry.answer)
        return found

    def accepted(self) -> int:
        """The requests that were neither turned away nor cut off with their gateway."""
        return sum(entry.final or entry.outcome == "open" for entry in self.entries)

    def violations(self) -> list[Violation]:
        """Everything that may not be. Every life has to have ended."""
        found: list[Violation] = []
        idle = {life.number: life.without_workers() for life in self.lives}
        for entry in self.entries:
            found += self._promises(entry)
            found += [Violation("unjustified", _who(entry), words) for words in self._excuses(entry, idle)]
        finals = Counter(entry.wish.name for entry in self.entries if entry.final)
        found += [Violation("twice", name, f"{n} final answers") for name, n in finals.items() if n > 1]
        for life in self.lives:
            found += self._told_by(life)
        return found

    def _promises(self, entry: Entry) -> Iterator[Violation]:
        """What no fault excuses: an answer, in time, once, with the pictures that were asked for."""
        who, answer = _who(entry), entry.answer
        if entry.ended is None:
            yield Violation("lost", who, "it was never answered")
            return
        if words := lost(entry.life, entry.sent, entry.ended, entry.broken):
            yield Violation("lost", who, words)
        took = entry.ended - entry.sent
        if took > self._timeout + SLACK_SECONDS + sum(end - began for began, end in self.frozen):
            yield Violation("hung", who, f"{took:.1f} s")
        if answer is None:
            return
        for words in answer.twice:
            yield Violation("twice", who, words)
        wrong = [*answer.problems, *(mistakes(entry.wish, answer.pictures) if entry.outcome == "200" else ())]
        if entry.outcome == "200" and entry.wish.kind in TROUBLES:
            wrong.append("a picture of what cannot be drawn")
        for words in wrong:
            yield Violation("wrong", who, words)

    def _excuses(self, entry: Entry, idle: dict[int, list[tuple[float, float]]]) -> Iterator[str]:
        """Why this outcome is not one that the faults around it explain."""
        wish, life, trouble = entry.wish, entry.life, TROUBLES.get(entry.wish.kind)
        if entry.ended is None:
            return
        told = life.told if life.told is not None else float("inf")
        took = entry.ended - entry.sent
        if entry.refused and not (entry.answer and entry.answer.retry_after):
            yield "turned away without a word when to come again"
        match entry.outcome:
            case "200" | "disconnected":
                pass
            case "left":
                if wish.patience is None:
                    yield "left without a reason"
            case "queue_full":
                if wish.kind != "hasty" and (most := self._crowd(entry)) < self._max_queue:
                    yield f"there were {most} pictures of its model under way"
            case "not_ready":
                near = (entry.sent - CLOCK_SECONDS, entry.ended + CLOCK_SECONDS)
                if not any(began <= near[1] and end >= near[0] for began, end in idle[life.number]):
                    yield "there were workers"
            case "draining":
                if not life.drained or entry.ended < told - CLOCK_SECONDS:
                    yield "nobody told its gateway to leave"
            case "expired":
                if took < wish.body.get("timeout_seconds", self._timeout) - CLOCK_SECONDS:
                    yield f"too early, after {took:.2f} s"
                if wish.kind not in ("hasty", "hang"):
                    yield "starved"
            case "state_changed" if wish.behind is not None:
                pass  # whether its epoch was another's by then is seen from the epochs
            case "lora_failed" if wish.kind == "leaky":
                pass  # whether a replica had the fault, too
            case code if trouble and code == trouble.code:
                pass
            case code:
                yield (
                    "of an innocent request" if code in {each.code for each in TROUBLES.values()} else "not documented"
                )

    def _crowd(self, entry: Entry) -> int:
        """How many pictures of its model were under way beside it, itself included: no more can have waited."""
        near = (other for other in self.entries if other.wish.model == entry.wish.model and other.beside(entry))
        return sum(len(other.wish.expected) for other in near)

    def _told_by(self, life: Life) -> Iterator[Violation]:
        """What the log of a gateway has against what its clients have seen."""
        mine = {entry.request_id: entry for entry in self.entries if entry.life is life}
        lines: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in life.events:
            if event["event"] == "answered":
                lines[event.get("request", "")].append(event)
            elif event["event"] == "job_poison" and (entry := mine.get(event["request"])):
                trouble = TROUBLES.get(entry.wish.kind)
                if trouble is None or trouble.code != "poison":
                    yield Violation("unjustified", _who(entry), "named as poison, and innocent")
        for request, entry in mine.items():
            told = lines[request]
            if len(told) > 1:
                yield Violation("twice", _who(entry), f"its gateway has answered {len(told)} times")
            elif entry.answer and not told and not _just_before_its_end(entry):
                yield Violation("bug", _who(entry), "its gateway does not know of its answer")
            elif entry.answer and told and _said(told[0]) != (entry.answer.status, entry.answer.code):
                yield Violation("bug", _who(entry), f"its gateway says it was {_said(told[0])}")
        for line in life.log.splitlines():
            if "Traceback" in line or '"task_restarted"' in line:
                yield Violation("bug", f"gateway {life.number}", line[:500])


def lost(life: Life, sent: float, ended: float, broken: str) -> str:
    """Why a connection that broke may not have broken; nothing where its gateway was killed, or would take no more."""
    if not broken:
        return ""
    if life.told is None or ended < life.told - CLOCK_SECONDS:
        return f"no answer from a gateway that lived: {broken}"
    if life.drained and sent < life.told - SETTLED_SECONDS:
        return "it was accepted before its gateway was told to leave"
    return ""


def _just_before_its_end(entry: Entry) -> bool:
    """Whether its gateway may have had no time to write its line."""
    told = entry.life.told
    return told is not None and not entry.life.drained and (entry.ended or 0.0) > told - SETTLED_SECONDS


def _said(line: dict[str, Any]) -> tuple[int, str]:
    return line["status"], line.get("code", "")


def _who(entry: Entry) -> str:
    return f"{entry.request_id} ({entry.wish.kind}, {entry.outcome})"
