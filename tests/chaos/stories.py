"""Made-up histories of a gateway: tries with their answers, as they should be or with what is planted in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from random import Random

from tests.chaos.history import Entry, History, Life
from tests.chaos.wishes import Answer, Wish, draw
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
    **made_from: object,
) -> Entry:
    """Enter one try into a history, and what its gateway writes into its log about it.

    Its pictures are what was asked for, but for what they are to be `made_from` besides, or instead.
    """
    life, wish = history.lives[-1], draw(Random(1), name, kind)
    entry = Entry(wish, f"{name}-{len(history.entries)}", life, START + sent)
    if took is not None:
        entry.ended = entry.sent + took
        entry.left = outcome == "left"
        entry.broken = outcome if outcome.startswith("Read") else ""
        if outcome == "200":
            entry.answer = Answer(200, pictures=pictures(wish, **made_from))
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
