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
