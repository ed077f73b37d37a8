"""The log line: one form for everybody, one line each, no secret in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from shared import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_json_line_carries_what_was_said_and_who_said_it() -> None:
    out = io.StringIO()
    logs.setup("info", "json", stream=out, worker="gpu0")
    logs.get("pool").info("job_requeued", job="7f3a", attempt=2)
    line = json.loads(out.getvalue())
    assert {k: line[k] for k in ("event", "room", "worker", "job", "attempt", "level")} == {
        "event": "job_requeued",
        "room": "pool",
        "worker": "gpu0",
        "job": "7f3a",
        "attempt": 2,
        "level": "info",
    }


def test_a_logger_made_before_the_setup_follows_it() -> None:
    early = logs.get("early")
    out = io.StringIO()
    logs.setup("warning", "json", stream=out)
    early.info("unheard")
    early.warning("heard")
    assert json.loads(out.getvalue())["event"] == "heard"


def test_lines_of_other_libraries_take_the_same_form() -> None:
    out = io.StringIO()
    logs.setup("info", "json", stream=out)
    logging.getLogger("somebody").warning("a %s", "word")
    assert json.loads(out.getvalue())["event"] == "a word"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_reaches_a_line(form: logs.Format) -> None:
    out = io.StringIO()
    logs.setup("info", form, stream=out)
    logs.get("x").info("event", token="abcdefghijkl", header="Bearer abcdefghijkl", key="sk-abcdefghijkl")
    logs.get("x").info("event", path="/v1/images/files/0.1.abcdefghijkl.png")
    logs.get("x").info("event", path="/v1?key=rc_abcdefghijkl", header="Basic +/abcdefghijkl==")
    assert "abcdefghijkl" not in out.getvalue()
    assert out.getvalue().count("[redacted]") == 6


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobody_forges_a_second_line_or_drives_a_terminal(form: logs.Format) -> None:
    out = io.StringIO()
    logs.setup("info", form, stream=out)
    logs.get("x").info("event", prompt="a\nb\x1b[31m\u202ec\r\x00")
    assert out.getvalue().count("\n") == 1
    assert not set(out.getvalue()[:-1]) & {"\x1b", "\r", "\x00", "\u202e"}


def test_a_trace_is_kept_whole() -> None:
    out = io.StringIO()
    logs.setup("info", "text", stream=out)
    try:
        raise RuntimeError("inside")
    except RuntimeError:
        logs.get("x").exception("failed")
    assert "RuntimeError: inside" in out.getvalue()
    assert "test_logs.py" in out.getvalue()


def test_whoever_writes_a_line_it_says_what_it_is_about_and_nothing_private() -> None:
    out = io.StringIO()
    logs.setup("info", "json", stream=out)
    with logs.about("a walrus", "", "x", job="7f3a", request="req_1"):
        logging.getLogger("somebody").warning("cannot draw a walrus, x")
        with logs.about(job="other"):
            try:
                raise ValueError("no 'a walrus' here")
            except ValueError:
                logs.get("engine").exception("run_failed", text="a walrus")
    logs.get("engine").info("after", text="a walrus")
    library, own, after = map(json.loads, out.getvalue().splitlines())
    assert (library["job"], library["request"], library["event"]) == ("7f3a", "req_1", "cannot draw [private], x")
    assert (own["job"], own["request"], own["text"]) == ("other", "req_1", "[private]")
    assert "ValueError: no '[private]' here" in own["exception"]
    assert "job" not in after
    assert after["text"] == "a walrus"


def test_a_long_trace_keeps_its_end() -> None:
    out = io.StringIO()
    logs.setup("info", "json", stream=out)
    try:
        raise RuntimeError("x" * 100_000 + "the end")
    except RuntimeError:
        logs.get("x").exception("failed")
    line = json.loads(out.getvalue())
    assert line["exception"].endswith("the end")
    assert len(out.getvalue()) < 64 << 10


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain words, 1.5 and /a/path?x=y", "plain words, 1.5 and /a/path?x=y"),
        ("BEARER abcdefghijkl", "BEARER [redacted]"),
        ("a\tb é 北", "a\tb é 北"),
        ("rc_abcdefghijkl\x1b", "rc_[redacted]\\x1b"),
        ("a\u2066b", "a\\u2066b"),
    ],
)
def test_what_is_redacted_and_what_is_not(text: str, kept: str) -> None:
    assert logs.redact(text) == kept


def test_a_log_that_nobody_reads_any_more_ends_nobody() -> None:
    tried = []

    class Gone(io.StringIO):
        def write(self, line: str) -> int:
            tried.append(line)
            raise BrokenPipeError

    logs.setup("info", "text", stream=Gone())
    logs.get("x").info("unread")
    assert "unread" in tried[0]
