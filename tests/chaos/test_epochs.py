"""What a storm's account of LoRAs calls a violation, and what it lets pass: made-up changes and pictures of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from shared.loras import NO_LORAS, Adapter, LoraState
from tests.chaos import adapters, epochs, orders
from tests.chaos.account import Account, Look, Row, settled
from tests.chaos.history import Entry, History, Violation
from tests.chaos.orders import Command, Held, Order
from tests.chaos.stories import START, TIMEOUT, past, tried

MODEL = adapters.STRUCK
DICE = Random(0)


def only(name: str, scale: float) -> LoraState:
    return LoraState(adapters=(Adapter(name=name, sha256=adapters.SHA256[name], scale=scale),))


INK, OIL = only("ink", 0.5), only("oil", 0.25)
LEAKY = only("leaky", 1.0)


@dataclass
class Story:
    """One gateway, whose first replica is ready a second after its start; moments are seconds after that."""

    history: History = field(default_factory=past)
    account: Account = field(default_factory=lambda: Account(TIMEOUT))

    def decided(self, epoch: int, state: LoraState, at: float, by: str = "anonymous") -> None:
        """It is written down."""
        names = frozenset((each.name, each.sha256) for row in self.account.rows for each in row.held.state.adapters)
        names |= {(each.name, each.sha256) for each in state.adapters}
        self.account.rows.append(Row(MODEL, epoch, Held(state, names), START + at, by=by))

    def ordered(self, order: Order, sent: float, ended: float | None = None, **said: Any) -> Command:
        """Somebody asks, and has this answer a tenth of a second later."""
        sent += START
        end = sent + 0.1 if ended is None else START + ended
        command = Command(replace(order, careful=False), self.history.lives[0], sent, ended=end, **said)
        self.account.commands.append(command)
        return command

    def changed(self, epoch: int, state: LoraState, sent: float, **view: Any) -> Command:
        """Somebody asks for a state; it is decided, told, and every replica has followed."""
        self.decided(epoch, state, sent + 0.05)
        told = seen(epoch, state, **view) | {"epoch": view.get("own", epoch), "result": "applied"}
        return self.ordered(orders.setting(MODEL, state, DICE), sent, status=200, told=told)

    def looked(self, sent: float, view: dict[str, Any]) -> None:
        self.account.looks.append(Look(self.history.lives[0], START + sent, START + sent + 0.1, view))

    def drawn(self, epoch: int, state: LoraState, sent: float, kind: str = "plain", **more: Any) -> Entry:
        """A picture that was made with these, and an answer that says so."""
        overlay = kind in ("own", "leaky")
        shown = adapters.shown(state, overlay=overlay)
        entry = tried(
            self.history,
            kind=kind,
            name=f"at{sent}",
            sent=sent,
            took=0.2,
            model=MODEL,
            **({"epoch": epoch, "digest": f"digest {epoch}", "loras": shown} | more),
        )
        body = entry.wish.body | {"model": MODEL} | ({"loras": adapters.asked(state)} if overlay else {})
        also = {"model": MODEL} | ({"loras": shown} if overlay else {})
        entry.wish = replace(entry.wish, body=body, expected=tuple(facts | also for facts in entry.wish.expected))
        assert entry.answer
        own = [{"sha256": sha256, "scale": scale, "target": target} for sha256, scale, target in shown["adapters"]]
        entry.answer.recipes = [{"lora_epoch": epoch, "loras": own}]
        return entry

    def found(self) -> list[Violation]:
        return [*self.history.violations(), *epochs.violations(self.account, self.history.entries)]


def seen(epoch: int, state: LoraState, *, prints: str = "pp", epochs: str = "", **_: Any) -> dict[str, Any]:
    """What the list says of it, each replica with a letter for its fingerprint, and with an epoch of its own."""
    rows = [
        {
            "worker": f"stub{number}",
            "behind": False,
            "epoch": int(epochs[number]) if epochs else epoch,
            "digest": f"digest {epochs[number] if epochs else epoch}",
            "fingerprint": letter,
            "class": "stub",
        }
        for number, letter in enumerate(prints)
    ]
    merged = {"merge_scale": state.merge_scale, "merge_target": state.merge_target} if state.mode == "merged" else {}
    wanted = {"epoch": epoch, "digest": f"digest {epoch}", "mode": state.mode, **merged}
    wanted["adapters"] = [{**each.model_dump(), "match": None} for each in state.adapters]
    return {"model": MODEL, "wanted": wanted, "converged": len(set(prints)) == 1, "replicas": rows}


def told() -> Story:
    """A story in which all is well: ink, then oil, and pictures of both."""
    story = Story()
    story.drawn(0, NO_LORAS, 1.5)
    story.changed(1, INK, 2.0)
    story.drawn(1, INK, 2.5)
    story.changed(2, OIL, 3.0)
    story.drawn(2, OIL, 3.5)
    return story


def test_what_may_be_is_let_pass() -> None:
    story = told()
    # Begun before a change, and made before or after it; and of its own.
    story.drawn(1, INK, 2.95)
    story.drawn(2, OIL, 2.96)
    story.drawn(2, INK, 3.6, kind="own")
    story.drawn(2, NO_LORAS, 3.7, kind="own")
    # A fault of a replica, whose request is told, or is not the one that met it.
    story.account.strikes.append(START + 3.8)
    story.drawn(2, LEAKY, 3.9, kind="leaky")
    tried(story.history, "lora_failed", kind="leaky", sent=3.95, took=0.1)
    story.ordered(orders.setting(MODEL, only("refused", 1.0), DICE), 4.0, status=400, code="adapter_does_not_fit")
    # Nobody can be asked while the only worker is lost, or stands still.
    story.ordered(orders.setting(MODEL, INK, DICE), 5.2, status=503, code="not_ready", retry_after=True)
    story.history.lives[0].stopped.append((START + 7.0, "a"))
    story.ordered(orders.setting(MODEL, INK, DICE), 7.1, status=503, code="not_ready", retry_after=True)
    # One whose answer was lost with its gateway, and that was carried out.
    story.decided(3, INK, 999.95)
    story.history.lives[0].drained = False
    story.ordered(orders.setting(MODEL, INK, DICE), 999.9, 1000.05, broken="ReadError")
    story.drawn(3, INK, 1001.0)
    story.looked(1002.0, seen(3, INK))
    assert story.found() == []


def test_what_nobody_can_follow_may_be_taken_back() -> None:
    story = told()
    story.decided(3, INK, 4.05)
    story.decided(4, OIL, 4.5, by="revert")
    story.ordered(orders.setting(MODEL, INK, DICE), 4.0, 4.6, status=409, code="lora_refused")
    story.drawn(4, OIL, 5.0)
    assert story.found() == []


def test_a_gateway_that_leaves_may_not_know_what_became_of_a_change() -> None:
    story = told()
    story.decided(3, INK, 999.95)
    story.ordered(orders.setting(MODEL, INK, DICE), 999.9, 1000.5, status=503, code="draining")
    assert story.found() == []


def test_each_kind_of_change_has_its_effect() -> None:
    story = told()
    merged = OIL.model_copy(update={"mode": "merged", "merge_scale": 0.5, "merge_target": "transformer"})
    said = {"model": MODEL, "strength": 0.5, "target": "transformer"}
    story.decided(3, merged, 4.05)
    order = Order("merge", MODEL, said)
    story.ordered(order, 4.0, status=200, told=seen(3, merged) | {"epoch": 3, "result": "applied"})
    story.ordered(order, 4.2, status=200, told=seen(3, merged) | {"epoch": 3, "result": "unchanged"})
    story.drawn(3, merged, 4.5)
    story.decided(4, OIL, 5.05)
    story.ordered(Order("unmerge", MODEL, {}), 5.0, status=202, told=seen(4, OIL) | {"epoch": 4, "result": "pending"})
    story.account.rows.append(Row(MODEL, 5, Held(NO_LORAS, frozenset({("ink", adapters.SHA256["ink"])})), START + 6.05))
    gone = Order("unload", MODEL, {}, name="oil")
    story.ordered(gone, 6.0, status=200, told=seen(5, NO_LORAS) | {"epoch": 5, "result": "applied"})
    story.ordered(gone, 7.0, status=404, code="lora_not_found")
    assert story.found() == []


def _refused(code: str, order: Order | None = None, **more: Any) -> Callable[[Story], object]:
    def plant(story: Story) -> None:
        story.ordered(order or orders.setting(MODEL, INK, DICE), 4.0, code=code, status=409, **more)

    return plant


def _untold(story: Story) -> None:
    story.account.commands.pop()


def _pinned(epoch: int, outcome: str) -> Callable[[Story], object]:
    def plant(story: Story) -> None:
        entry = story.drawn(2, OIL, 4.0, kind="pinned")
        entry.wish = replace(entry.wish, body=entry.wish.body | {"lora_epoch": epoch})
        if outcome != "200":
            assert entry.answer
            story.history.entries.remove(entry)
            other = tried(story.history, outcome, kind="pinned", sent=4.0, took=0.2)
            other.wish = entry.wish

    return plant


def _changed_recipe(story: Story) -> None:
    answer = story.drawn(2, OIL, 4.0).answer
    assert answer
    answer.recipes[0]["lora_epoch"] = 1


@pytest.mark.parametrize(
    ("plant", "what", "words"),
    [
        # Pictures
        (lambda s: s.drawn(2, INK, 4.0), "wrong", "epoch 2 is attached all [oil 0.25 all], and it shows"),
        (lambda s: s.drawn(1, INK, 4.0), "wrong", "epoch 2 was known before it was asked"),
        (lambda s: s.drawn(2, LEAKY, 4.0), "wrong", "and it shows"),
        (lambda s: s.drawn(2, INK, 4.0, "own", loras=adapters.shown(OIL)), "wrong", "loras is"),
        (lambda s: s.drawn(2, INK, 4.0, "own", loras=adapters.shown(LEAKY, overlay=True)), "wrong", "loras is"),
        (lambda s: s.drawn(7, INK, 4.0), "wrong", "of which nobody knows"),
        (lambda s: s.drawn(2, OIL, 4.0, digest="other"), "wrong", "another digest"),
        (lambda s: (s.drawn(2, OIL, 2.6), s.drawn(2, OIL, 2.7)), "wrong", "before that was decided"),
        (_pinned(1, "200"), "wrong", "it was to be 1"),
        (_pinned(2, "state_changed"), "unjustified", "held all the while"),
        (lambda s: tried(s.history, "lora_failed", kind="leaky", sent=4.0), "unjustified", "no replica had the fault"),
        (_changed_recipe, "wrong", "its answer tells of epoch 1"),
        # What is told of changes
        (lambda s: s.looked(4.0, seen(1, INK)), "wrong", "epoch 2 was known before"),
        (lambda s: s.looked(4.0, seen(2, INK)), "wrong", "list_loras says it is attached all [ink 0.5 all]"),
        (lambda s: s.looked(4.0, seen(2, OIL, prints="pq")), "wrong", "different weights"),
        (lambda s: s.looked(4.0, seen(2, OIL, epochs="21")), "wrong", "called in step in epoch 1"),
        (lambda s: s.changed(3, INK, 4.0, own=2), "wrong", "epoch 2 is not its doing"),
        (lambda s: s.account.rows.pop(), "wrong", "epoch 2 is not its doing"),
        (_untold, "wrong", "nobody has asked for"),
        (lambda s: s.decided(3, only("wash", 1.0), 4.0, by="revert"), "wrong", "was never held"),
        (lambda s: (s.decided(3, INK, 4.05), _refused("not_ready", retry_after=True)(s)), "wrong", "was refused"),
        # Refusals
        (_refused("not_ready", retry_after=True), "unjustified", "there were workers"),
        (
            lambda s: (
                s.history.lives[0].stopped.append((START + 4.5, "a")),
                _refused("not_ready", retry_after=True)(s),
            ),
            "unjustified",
            "there were workers",
        ),
        (_refused("not_ready"), "unjustified", "come again"),
        (_refused("state_changed"), "unjustified", "no other epoch held"),
        (_refused("state_changed", only=2), "unjustified", "no other epoch held"),
        (_refused("adapter_does_not_fit"), "unjustified", "anything against it"),
        (_refused("lora_refused"), "unjustified", "nothing was taken back"),
        (_refused("lora_not_found", order=Order("unload", MODEL, {}, name="oil")), "unjustified", "there was one"),
        (_refused("draining"), "unjustified", "nobody told its gateway to leave"),
        (_refused("internal_error"), "unjustified", "not documented"),
        (lambda s: s.ordered(Order("unmerge", MODEL, {}), 4.0, broken="ReadError"), "lost", "a gateway that lived"),
        (lambda s: s.ordered(Order("unmerge", MODEL, {}), 4.0, 99.0, broken=""), "hung", "95.0 s"),
    ],
)
def test_what_may_not_be_is_told(plant: Callable[[Story], object], what: str, words: str) -> None:
    story = told()
    plant(story)
    assert [each for each in story.found() if each.what == what and words in each.words], story.found()


def test_two_states_under_one_number_are_found_where_nobody_has_told_of_it() -> None:
    story = told()
    story.drawn(7, INK, 4.0)
    story.drawn(7, OIL, 4.0)
    assert "made with another state than" in " ".join(each.words for each in story.found())


@pytest.mark.parametrize(
    ("view", "is_settled"),
    [
        (seen(2, OIL), True),
        (seen(2, OIL, prints="p"), False),
        (seen(2, OIL, prints="pq"), False),
        (seen(2, OIL, epochs="21"), False),
        (seen(2, OIL) | {"converged": False}, False),
    ],
)
def test_the_end_is_one_state_for_all(view: dict[str, Any], is_settled: bool) -> None:
    assert settled(view, 2) is is_settled
