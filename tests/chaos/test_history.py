"""What a storm's history calls a violation, and what it lets pass: by made-up answers, bad ones planted among them."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from tests.chaos.faults import FAULTS, plan
from tests.chaos.history import SLACK_SECONDS, Violation
from tests.chaos.stories import LOG, MAX_QUEUE, START, TIMEOUT, found, line, past, pictures, tried
from tests.chaos.wishes import TROUBLES, Answer, wishes


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
        ({"outcome": "state_changed", "kind": "pinned"}, {}),
        ({"outcome": "lora_failed", "kind": "leaky"}, {}),
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
        ({"outcome": "state_changed"}, {}, "unjustified", "not documented"),
        ({"outcome": "lora_failed", "kind": "own"}, {}, "unjustified", "not documented"),
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
    first, again, other = (list(islice(plan(seed, gateway=True), 800)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert {fault.kind for fault in first} == set(FAULTS), "each kind comes within a few minutes"
    assert not any(FAULTS[fault.kind].room == "gateway" for fault in islice(plan(5), 800)), "only if asked for"
    asked = [[wish.body for wish in islice(wishes(seed, "a"), 50)] for seed in (5, 5, 6)]
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]
