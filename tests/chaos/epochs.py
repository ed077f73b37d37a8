"""Whether every picture of a storm was made with the very LoRAs that it was to be made with, and every change is one.

What is decided is told by the answers to changes, by the list of LoRAs, and in the end by the durable rows: they have
to agree, pictures have to show it, and what anybody has seen of an epoch holds for whoever asks after that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from shared.loras import LoraState
from tests.chaos import adapters
from tests.chaos.account import Account, Look, Reign, Row
from tests.chaos.history import CLOCK_SECONDS, SLACK_SECONDS, Entry, Violation, lost
from tests.chaos.orders import Command, Held
from worker.backends import stub

_MOST_WAITING = 16
# With these a change may hold all the same: no word at all, what was decided and taken back, and a gateway that left.
_PERHAPS = ("", "lora_refused", "draining")


def violations(account: Account, entries: Iterable[Entry]) -> list[Violation]:
    """Everything that may not be. Every life has to have ended, and the account's rows have to be what they left."""
    return [*_Judge(account, list(entries)).found()]


class _Judge:
    """Looks through an account and the tries beside it, once."""

    def __init__(self, account: Account, entries: list[Entry]) -> None:
        self._account, self._entries = account, entries
        self._reigns: defaultdict[str, list[Reign]] = defaultdict(list)
        for model in {*adapters.MODELS, *(row.model for row in account.rows)}:
            rows = [row for row in account.rows if row.model == model and row.committed]
            rows = [Row(model, 0, Held(), 0.0), *sorted(rows, key=lambda row: row.epoch)]
            ends = [row.at for row in rows[1:]] + [float("inf")]
            self._reigns[model] = [Reign(row, row.at, end) for row, end in zip(rows, ends, strict=True)]
        # By model and epoch, what it is, and who said so first.
        self._states: dict[tuple[str, int], tuple[LoraState, str]] = {}
        # What pictures show of an epoch that nobody has told of.
        self._shown: dict[tuple[str, int], Any] = {}
        self._digests: dict[tuple[str, int], tuple[str, str]] = {}
        self._seen: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)

    def found(self) -> Iterator[Violation]:
        yield from self._told()
        facts = {
            id(entry): [made for picture in _pictures(entry) if (made := _facts(picture))] for entry in self._entries
        }
        for entry in self._entries:
            for made in facts[id(entry)]:
                self._saw(made["model"], entry.ended or entry.sent, made["epoch"])
        for model, seen in self._seen.items():
            self._seen[model] = _rising(seen)
        for entry in self._entries:
            for made in facts[id(entry)]:
                yield from (Violation("wrong", _name(entry), words) for words in self._picture(entry, made))
            yield from (Violation("wrong", _name(entry), words) for words in _recipe(entry, facts[id(entry)]))
            yield from (Violation("unjustified", _name(entry), words) for words in self._error(entry))
        for look in self._account.looks:
            yield from (Violation("wrong", "list_loras", words) for words in self._look(look))
        for command in self._account.commands:
            yield from self._command(command)
        yield from self._decisions()

    # What is decided

    def _told(self) -> Iterator[Violation]:
        """Whoever speaks of an epoch says the same of it."""
        for reigns in self._reigns.values():
            for reign in reigns:
                yield from self._says("the database", reign.row.model, reign.row.epoch, reign.row.held.state)
        for command in self._account.commands:
            if command.told:
                model, wanted = command.order.model, command.told["wanted"]
                self._saw(model, command.ended or command.sent, max(wanted["epoch"], command.told["epoch"]))
                yield from self._wanted(f"the answer to {command.order}", model, wanted)
        for look in self._account.looks:
            model, wanted = look.view["model"], look.view["wanted"]
            self._saw(model, look.ended, wanted["epoch"])
            yield from self._wanted("list_loras", model, wanted)

    def _wanted(self, who: str, model: str, wanted: dict[str, Any]) -> Iterator[Violation]:
        yield from self._says(who, model, wanted["epoch"], adapters.of_view(wanted))
        yield from self._is_digest(who, model, wanted["epoch"], wanted["digest"])

    def _says(self, who: str, model: str, epoch: int, state: LoraState) -> Iterator[Violation]:
        other, by = self._states.setdefault((model, epoch), (state, who))
        if adapters.shown(state) != adapters.shown(other):
            words = f"{who} says it is {_short(state)}, and {by} that it is {_short(other)}"
            yield Violation("wrong", f"epoch {epoch} of {model}", words)

    def _is_digest(self, who: str, model: str, epoch: int, digest: str) -> Iterator[Violation]:
        other, by = self._digests.setdefault((model, epoch), (digest, who))
        if digest != other:
            yield Violation("wrong", f"epoch {epoch} of {model}", f"{who} has another digest than {by}")

    def _saw(self, model: str, at: float, epoch: int) -> None:
        self._seen[model].append((at, epoch))

    def _least(self, model: str, sent: float) -> int:
        """The epoch that was known before this moment: whoever asks then gets it, or one after it."""
        seen = self._seen[model]
        place = bisect_left(seen, (sent, -1))
        return seen[place - 1][1] if place else 0

    # Pictures

    def _picture(self, entry: Entry, made: dict[str, Any]) -> Iterator[str]:
        model, epoch = made["model"], made["epoch"]
        if epoch < (least := self._least(model, entry.sent)):
            yield f"made in epoch {epoch}, and epoch {least} was known before it was asked"
        if (pin := entry.wish.body.get("lora_epoch")) not in (None, epoch):
            yield f"made in epoch {epoch}, and it was to be {pin}"
        if (known := self._states.get((model, epoch))) is None:
            yield f"made in epoch {epoch}, of which nobody knows"
            other = made["loras"] if entry.wish.brings else self._shown.setdefault((model, epoch), made["loras"])
            if other != made["loras"]:
                yield f"made with another state than others of epoch {epoch}: {made['loras']}, not {other}"
        elif not entry.wish.brings and made["loras"] != adapters.shown(known[0]):
            yield f"epoch {epoch} is {_short(known[0])}, and it shows {made['loras']}"
        reign = next((each for each in self._reigns[model] if each.row.epoch == epoch), None)
        if reign and entry.ended is not None and reign.since > entry.ended + CLOCK_SECONDS:
            yield f"made in epoch {epoch} before that was decided"
        yield from (violation.words for violation in self._is_digest(_name(entry), model, epoch, made["digest"]))

    def _error(self, entry: Entry) -> Iterator[str]:
        if entry.outcome == "state_changed":
            pin = entry.wish.body.get("lora_epoch")
            if pin is not None and not self._moved_on(entry.wish.model, pin, entry.ended):
                yield f"epoch {pin} held all the while"
        elif entry.outcome == "lora_failed" and not self._struck(entry.ended):
            yield "no replica had the fault"

    def _moved_on(self, model: str, epoch: int, before: float | None) -> bool:
        """Whether a later epoch was decided by then."""
        end = float("inf") if before is None else before + CLOCK_SECONDS
        return any(each.row.epoch > epoch and each.since <= end for each in self._reigns[model])

    def _reigned(self, model: str, sent: float, ended: float | None) -> list[Reign]:
        """The epochs that may have held within this time."""
        return [each for each in self._reigns[model] if each.within(sent, ended)]

    def _struck(self, before: float | None) -> bool:
        return any(at <= (before or 0.0) for at in self._account.strikes)

    # Changes

    def _look(self, look: Look) -> Iterator[str]:
        view, wanted = look.view, look.view["wanted"]
        if wanted["epoch"] < (least := self._least(view["model"], look.sent)):
            yield f"epoch {wanted['epoch']} of {view['model']} holds, and epoch {least} was known before"
        yield from _in_step(view)

    def _command(self, command: Command) -> Iterator[Violation]:
        who, ended = f"{command.order} ({command.outcome})", command.ended
        if ended is None:
            yield Violation("lost", who, "it was never answered")
            return
        if words := lost(command.life, command.sent, ended, command.broken):
            yield Violation("lost", who, words)
        if ended - command.sent > self._account.timeout_seconds + SLACK_SECONDS:
            yield Violation("hung", who, f"{ended - command.sent:.1f} s")
        if command.told:
            yield from (Violation("wrong", who, words) for words in self._success(command))
        elif command.code:
            yield from (Violation("unjustified", who, words) for words in self._refusal(command))

    def _success(self, command: Command) -> Iterator[str]:
        """What is wrong with an answer that says that a change holds: its epoch has to be one that it made, or left."""
        told, result = command.told, command.told["result"]
        model, epoch = command.order.model, told["epoch"]
        mine = {row.epoch for row in self._made(command)} if result != "unchanged" else set()
        left = self._reigned(model, command.sent, command.ended) if result in ("unchanged", "pending") else []
        mine |= {each.row.epoch for each in left if command.order.effect(each.row.held) == each.row.held}
        if epoch not in mine:
            yield f"epoch {epoch} is not its doing, which is one of {sorted(mine)}"
        if command.status == 200 and wanted_by(told) and not told["converged"]:
            yield "not all have followed"
        yield from _in_step(told)

    def _made(self, command: Command) -> list[Row]:
        """The decisions that this command may have brought about, by their moment and by what became of the state."""
        return [
            reign.row
            for former, reign in pairwise(self._reigns[command.order.model])
            if reign.row.asked
            and command.sent - CLOCK_SECONDS <= reign.since
            and (command.ended is None or reign.since <= command.ended + CLOCK_SECONDS)
            and command.order.effect(former.row.held) == reign.row.held
        ]

    def _refusal(self, command: Command) -> Iterator[str]:
        order, sent, ended = command.order, command.sent, command.ended
        held = self._reigned(order.model, sent, ended)
        match command.code:
            case "state_changed":
                if command.only is None or not self._moved_on(order.model, command.only, ended):
                    yield "no other epoch held"
            case "adapter_does_not_fit":
                if not order.brings("refused") or not self._struck(ended):
                    yield "no replica had anything against it"
            case "lora_refused":
                if not self._taken_back(command) and self._beside(command) < _MOST_WAITING:
                    yield "nothing was taken back"
            case "lora_not_found":
                if all(order.effect(each.row.held) is not None for each in held):
                    yield "there was one of this name all the while"
            case "draining":
                told = command.life.told
                if told is None or not command.life.drained or (ended or sent) < told - CLOCK_SECONDS:
                    yield "nobody told its gateway to leave"
            case "not_ready":
                if not command.retry_after:
                    yield "turned away without a word when to come again"
                near = (sent - CLOCK_SECONDS, (ended or sent) + CLOCK_SECONDS)
                if not any(since <= near[1] and until >= near[0] for since, until in command.life.unheard):
                    yield "there were workers"
            case _:
                yield "not documented"

    def _taken_back(self, command: Command) -> bool:
        """Whether what this command decided, and nothing else, was taken back before it was answered."""
        made, reigns = self._made(command), self._reigns[command.order.model]
        end = (command.ended or command.sent) + CLOCK_SECONDS
        return any(
            each.row in made and after.row.by == "revert" and after.since <= end for each, after in pairwise(reigns)
        )

    def _beside(self, command: Command) -> int:
        model, ended = command.order.model, command.ended or command.sent
        others = [each for each in self._account.commands if each.order.model == model and each is not command]
        return sum(each.sent <= ended and (each.ended or ended) >= command.sent for each in others)

    def _decisions(self) -> Iterator[Violation]:
        """Each decision is one that was asked for, and whoever was refused has changed nothing."""
        made: defaultdict[tuple[str, int], list[Command]] = defaultdict(list)
        for command in self._account.commands:
            for row in self._made(command):
                made[row.model, row.epoch].append(command)
        for model, reigns in self._reigns.items():
            for before, reign in zip([None, *reigns], reigns, strict=False):
                row, who = reign.row, f"epoch {reign.row.epoch} of {model}"
                if row.epoch and row.asked and not (by := made[model, row.epoch]):
                    yield Violation("wrong", who, f"nobody has asked for {_short(row.held.state)}")
                elif row.epoch and row.asked and all(each.code not in _PERHAPS for each in by):
                    yield Violation("wrong", who, f"{by[0].order} was refused: {by[0].code}")
                elif (
                    row.by == "revert"
                    and before
                    and row.held not in [each.row.held for each in reigns if each.row.epoch < row.epoch]
                ):
                    yield Violation("wrong", who, "what it goes back to was never held")


def wanted_by(told: dict[str, Any]) -> bool:
    """Whether an answer speaks of the epoch that it calls its own."""
    return bool(told["epoch"] == told["wanted"]["epoch"])


def _in_step(view: dict[str, Any]) -> Iterator[str]:
    """What is wrong with what replicas say that are called in step."""
    wanted, prints = view["wanted"], set()
    for row in view["replicas"]:
        if row["behind"]:
            continue
        prints.add((row["class"], row["fingerprint"]))
        if (row["epoch"], row["digest"]) != (wanted["epoch"], wanted["digest"]):
            yield f"{row['worker']} is called in step in epoch {row['epoch']}, and {wanted['epoch']} is wanted"
    if len(prints) > len({kind for kind, _ in prints}):
        yield f"replicas in step have different weights: {sorted(prints)}"


def _recipe(entry: Entry, facts: list[dict[str, Any]]) -> Iterator[str]:
    """What an answer tells of its pictures is what they show."""
    recipes = entry.answer.recipes if entry.answer else []
    for recipe, made in zip(recipes, facts, strict=False):
        own = [[each["sha256"], each["scale"], each["target"]] for each in recipe.get("loras", ())]
        if (recipe.get("lora_epoch"), own) != (made["epoch"], made["loras"]["adapters"]):
            shown = f"it shows {made['epoch']} with {made['loras']}"
            yield f"its answer tells of epoch {recipe.get('lora_epoch')} with {own}; {shown}"
    if facts and not recipes:
        yield "its answer does not tell what it was made with"


def _pictures(entry: Entry) -> list[bytes]:
    return entry.answer.pictures if entry.answer and entry.outcome == "200" else []


def _facts(picture: bytes) -> dict[str, Any] | None:
    """What it was made from; that it cannot be read is told elsewhere."""
    try:
        return stub.read_back(picture)
    except (ValueError, OSError):
        return None


def _rising(seen: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The highest number seen at each of these moments or before."""
    highest, found = 0, []
    for at, epoch in sorted(seen):
        highest = max(highest, epoch)
        found.append((at, highest))
    return found


def _short(state: LoraState) -> str:
    own = ", ".join(f"{each.name} {scale:g} {each.target}" for each, scale in state.effective())
    return f"{state.mode} {state.merge_target} [{own}]"


def _name(entry: Entry) -> str:
    return f"{entry.request_id} ({entry.wish.kind}, {entry.outcome})"
