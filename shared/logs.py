"""One line format for every process, with the request, job and worker in it; secrets never reach a line.

    log = logs.get("pool")
    log.info("job_requeued", job="7f3a", worker="gpu0", attempt=2)

The first word is the event, from a closed set a machine can count; the rest are its fields. Lines of other libraries
pass through the same formatter.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Literal, TextIO

import structlog

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

_SECRET_FIELDS = re.compile(r"token|secret|password|authorization|api_?key", re.IGNORECASE)
# The last one: a signed path opens what it names.
_SECRET_WORDS = re.compile(r"(\b(?i:bearer|basic)\s+|\bsk-|\brc_|/images/files/)[A-Za-z0-9_\-\.+/=~]{8,}")
# No secret word is without one of these: the search for them alone is ten times as fast.
_SECRET_SIGNS = ("sk-", "rc_", "/images/files/")
_SCHEMES = ("bearer", "basic")
# Control characters could forge a second line or drive a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Shorter ones are words that a line may have in it anyway.
_LEAST_PRIVATE = 4
_PRIVATE: ContextVar[tuple[str, ...]] = ContextVar("private", default=())
_LONGEST = 2000
# Of a trace the end says most; longer lines a gateway does not take from its workers.
_LONGEST_TRACE = 20_000


def get(name: str) -> Any:
    """A logger whose lines carry `name` as their room."""
    return structlog.get_logger(room=name)


@contextmanager
def about(*private: str, **ids: str) -> Iterator[None]:
    """While it lasts every line of this task or thread, whoever writes it, carries these ids, and none of `private`.

    What a client wrote is private: a library may put it into the message of what it raises.
    """
    hidden = _PRIVATE.set((*_PRIVATE.get(), *(text for text in private if len(text) >= _LEAST_PRIVATE)))
    try:
        with structlog.contextvars.bound_contextvars(**ids):
            yield
    finally:
        _PRIVATE.reset(hidden)


def setup(level: Level, form: Format, *, stream: TextIO | None = None, **fields: str) -> None:
    """Send every line of this process to `stream` (stderr) in this form, each with `fields` in it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _, __, event: {**fields, **event},
    ]
    last: list[Any] = (
        [structlog.processors.format_exc_info, _clean, structlog.processors.JSONRenderer()]
        if form == "json"
        else [structlog.processors.format_exc_info, _clean, _text]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("uvicorn", "uvicorn.access", "asyncio", "urllib3", "httpx", "httpcore2", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # A broken form is its sender's fault, and the answer says so.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    lines = _Lines(stream)
    structlog.configure(
        # Ours do not go the way of the others, by a record and its handler: that costs as much again.
        processors=[*shared, *last],
        logger_factory=lambda *_: lines,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=False,
    )


class _Lines:
    """Writes each line whole, from any thread. That nobody reads them any more must end nobody."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def _write(self, line: str) -> None:
        with self._lock, suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = _write


def redact(text: str) -> str:
    """`text` without anything that looks like a credential, on one line."""
    if any(sign in text for sign in _SECRET_SIGNS) or any(scheme in text.lower() for scheme in _SCHEMES):
        text = _SECRET_WORDS.sub(r"\1[redacted]", text)
    return text if text.isprintable() else _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


@lru_cache(1024)
def _is_secret(name: str) -> bool:
    return bool(_SECRET_FIELDS.search(name))


def _clean(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if _is_secret(name):
            event[name] = "[redacted]"
        elif isinstance(value, str):
            for text in _PRIVATE.get():
                value = value.replace(text, "[private]")
            trace = name == "exception"
            event[name] = (
                _SECRET_WORDS.sub(r"\1[redacted]", value[-_LONGEST_TRACE:]) if trace else redact(value[:_LONGEST])
            )
    return event


def _text(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    when, level = event.pop("timestamp", ""), event.pop("level", "info")
    room, what = event.pop("room", "-"), event.pop("event", "")
    trace = event.pop("exception", None)
    fields = " ".join(f"{name}={_word(value)}" for name, value in event.items())
    line = f"{str(when)[11:23]} {level:<7} {room}: {what} {fields}".rstrip()
    return f"{line}\n{trace}" if trace else line


def _word(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text or not text else text
