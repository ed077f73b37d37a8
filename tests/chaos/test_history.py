"""What a storm's history calls a violation, and what it lets pass: by made-up answers, bad ones planted among them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from random import Random
from typing import Any

import pytest

from tests.chaos.faults import FAULTS, plan
from tests.chaos.history import SLACK_SECONDS, Entry, History, Life, Violation
from tests.chaos.wishes import TROUBLES, Answer, Wish, draw, wishes
from worker import images
from worker.backends.stub import _drawn  # the very pixels, without a server

START = 1_800_000_000.0
TIMEOUT, MAX_QUEUE = 60.0, 3
# When the gateway was told to leave, unless a story says otherwise; in seconds after its start, as all moments here.
TOLD = 1000.0


def line(at: float, event: str, **more: object) -> str:
    """A line of a gateway's log."""
    when = datetime.fromtimestamp(START + at, UTC).isoformat()
    return json.dumps({"event": event, "timestamp": when, **more})


LOG = "\n".join(
    [
        line(1.0, "worker_ready", worker="a"),
        line(5.0, "worker_lost", worker="a"),
        "a line of somebody else",
        line(6.0, "worker_ready", worker="a"),
    ]
)


def pictures(wish: Wish, **changed: object) -> list[bytes]:
    """What the stub draws for a wish, or what it would draw if these facts were others."""
    made = []
    for expected in wish.expected:
        facts = expected | changed
        size = images.Size(width=int(facts["width"]), height=int(facts["height"]))
        made.append(images.encode(_drawn(facts, size, transparent=False), "png"))
    return made


def past(*, told: float = TOLD, drained: bool = True, log: str = LOG) -> History:
    """A history of one gateway, in which nobody has asked yet."""
    history = History(timeout_seconds=TIMEOUT, max_queue=MAX_QUEUE)
    history.lives.append(Life(0, START, told=START + told, ended=START + told + 1, drained=drained, log=log))
    return history


def tried(
    history: History,
    outcome: str = "200",
    *,
    kind: str = "plain",
    name: str = "w",
    sent: float = 2.0,
    took: float | None = 1.0,
    retry_after: bool = True,
) -> Entry:
    """Enter one try into a history, and what its gateway writes into its log about it."""
    life, wish = history.lives[-1], draw(Random(1), name, kind)
    entry = Entry(wish, f"{name}-{len(history.entries)}", life, START + sent)
    if took is not None:
        entry.ended = entry.sent + took
        entry.left = outcome == "left"
        entry.broken = outcome if outcome.startswith("Read") else ""
        if outcome == "200":
            entry.answer = Answer(200, pictures=pictures(wish))
        elif not entry.left and not entry.broken:
            entry.answer = Answer(503, outcome, retry_after=retry_after)
    if entry.answer:
        said = {"code": outcome} if outcome != "200" else {}
        told = line(sent + (took or 0.0), "answered", request=entry.request_id, status=entry.answer.status, **said)
        life.log += f"\n{told}"
    history.entries.append(entry)
    return entry


def found(history: History) -> list[tuple[str, str]]:
    return [(violation.what, violation.words) for violation in history.violations()]


@pytest.mark.parametrize(
    ("story", "life"),
    [
        ({"outcome": "200"}, {}),
        ({"outcome": "left", "kind": "leaver"}, {}),
        ({"outcome": "queue_full", "kind": "hasty"}, {}),
        ({"outcome": "not_ready", "sent": 5.2, "took": 0.1}, {}),
        ({"outcome": "not_ready", "sent": 4.0, "took": 1.5}, {}),
        ({"outcome": "ReadError"}, {"told": 2.5, "drained": False}),
        ({"outcome": "ReadError", "sent": 2.4, "took": 0.2}, {"told": 2.5}),
        ({"outcome": "draining"}, {"told": 2.5}),
        ({"outcome": "expired", "kind": "hasty"}, {}),
        ({"outcome": "expired", "kind": "hang", "took": TIMEOUT + 1}, {}),
        *(({"outcome": trouble.code, "kind": kind}, {}) for kind, trouble in TROUBLES.items()),
    ],
    ids=str,
)
def test_what_the_faults_allow_is_let_pass(story: dict[str, Any], life: dict[str, Any]) -> None:
    history = past(**life)
    tried(history, **story)
    assert found(history) == []


@pytest.mark.parametrize(
    ("story", "life", "what", "words"),
    [
        ({"took": None}, {}, "lost", "never answered"),
        ({"outcome": "ReadError"}, {}, "lost", "a gateway that lived"),
        ({"outcome": "ReadError", "sent": 1.0}, {"told": 2.0}, "lost", "before its gateway was told to leave"),
        ({"took": TIMEOUT + SLACK_SECONDS + 1}, {}, "hung", "81.0 s"),
        ({"kind": "garbage"}, {}, "wrong", "what cannot be drawn"),
        ({"outcome": "left"}, {}, "unjustified", "without a reason"),
        ({"outcome": "queue_full"}, {}, "unjustified", "pictures of its model under way"),
        ({"outcome": "queue_full", "kind": "hasty", "retry_after": False}, {}, "unjustified", "when to come again"),
        ({"outcome": "not_ready", "sent": 5.2, "took": 0.1, "retry_after": False}, {}, "unjustified", "come again"),
        ({"outcome": "not_ready"}, {}, "unjustified", "there were workers"),
        ({"outcome": "draining"}, {}, "unjustified", "nobody told"),
        ({"outcome": "draining"}, {"told": 2.5, "drained": False}, "unjustified", "nobody told"),
        ({"outcome": "poison"}, {}, "unjustified", "innocent"),
        ({"outcome": "out_of_memory", "kind": "poison"}, {}, "unjustified", "innocent"),
        ({"outcome": "job_failed"}, {}, "unjustified", "innocent"),
        ({"outcome": "expired", "took": TIMEOUT + 1}, {}, "unjustified", "starved"),
        ({"outcome": "expired", "kind": "poison", "took": TIMEOUT + 1}, {}, "unjustified", "starved"),
        ({"outcome": "expired", "kind": "hasty", "took": 0.01}, {}, "unjustified", "too early"),
        ({"outcome": "internal_error"}, {}, "unjustified", "not documented"),
    ],
    ids=str,
)
def test_what_no_fault_allows_is_told(story: dict[str, Any], life: dict[str, Any], what: str, words: str) -> None:
    history = past(**life)
    tried(history, name="before")
    tried(history, **story)
    [(told, said)] = found(history)
    assert told == what
    assert words in said


def test_a_queue_is_full_of_what_is_under_way_beside_it() -> None:
    history = past()
    for number in range(MAX_QUEUE):
        # All of these are drawn by the same dice, and ask the same model.
        tried(history, name=f"other{number}", took=2.0)
    tried(history, "queue_full", took=0.1)
    assert found(history) == []


def test_who_was_told_to_leave_is_no_worker_any_more() -> None:
    history = past()
    history.lives[0].retired.append((START + 1.5, "a"))
    tried(history, "not_ready")
    assert found(history) == []


def test_a_second_answer_is_found_in_each_place_where_it_shows() -> None:
    history = past()
    for _ in range(2):
        tried(history)
    assert ("twice", "2 final answers") in found(history)

    history = past()
    tried(history)
    history.lives[0].log += "\n" + line(4.0, "answered", request="w-0", status=200)
    assert found(history) == [("twice", "its gateway has answered 2 times")]

    history = past()
    answer = tried(history).answer
    assert answer
    answer.twice.append("picture 0 is spoken of after it has come")
    assert found(history) == [("twice", "picture 0 is spoken of after it has come")]


def test_a_wrong_picture_is_found_by_what_it_was_made_from() -> None:
    history = past()
    entry = tried(history, name="pair")
    wish = next(wish for wish in wishes(3, "somebody") if len(wish.expected) == 2 and wish.kind == "plain")
    right = pictures(wish)

    def judged(shown: list[bytes]) -> list[Violation]:
        history.entries[:] = [replace(entry, wish=wish, answer=Answer(200, pictures=shown))]
        return history.violations()

    assert judged(right) == []
    assert [violation.words for violation in judged(right[:1])] == ["1 pictures for 2"]
    for shown, words in (
        (right[::-1], "seed is"),
        ([b"", b""], "no picture of ours"),
        (pictures(wish, steps=99), "steps is 99"),
        (pictures(wish, model="other"), "model is 'other'"),
        (pictures(wish, prompt_sha256="0"), "prompt_sha256 is"),
    ):
        violations = judged(shown)
        assert [violation.what for violation in violations] == ["wrong", "wrong"]
        assert all(words in violation.words for violation in violations)


def test_what_a_gateway_writes_about_itself_is_held_against_what_its_clients_saw() -> None:
    history = past(log=LOG + "\nTraceback (most recent call last):\n" + line(2.0, "job_poison", request="w-0"))
    tried(history)
    unknown = tried(history, name="unknown")
    history.lives[0].log = history.lives[0].log.replace(f'"{unknown.request_id}"', '"nobody"')
    otherwise = tried(history, name="otherwise")
    assert otherwise.answer
    otherwise.answer.status = 202
    said = [words for _, words in found(history)]
    for words in ("named as poison", "Traceback", "does not know of its answer", "its gateway says it was (200, '')"):
        assert [each for each in said if words in each], words


def test_a_seed_decides_what_comes() -> None:
    first, again, other = (list(islice(plan(seed, gateway=True), 400)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert {fault.kind for fault in first} == set(FAULTS), "each kind comes within a few minutes"
    assert not any(FAULTS[fault.kind].room == "gateway" for fault in islice(plan(5), 400)), "only if asked for"
    asked = [[wish.body for wish in islice(wishes(seed, "a"), 50)] for seed in (5, 5, 6)]
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]
