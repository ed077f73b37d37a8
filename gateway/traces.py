"""Where the time of a request went, told to whoever collects that; nothing at all unless an endpoint is configured.

OpenTelemetry's own variables say where and how, so that a server is traced like all others of its operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gateway.actions import Note
from gateway.jobs.job import Job, Outcome
from shared.errors import ConfigError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"


class Traces:
    """Traces nothing; what does is in spans.py. Times are monotonic seconds, and nothing in here raises."""

    # What makes the spans of the requests themselves; FastAPI's, if there is one.
    provider: Any = None

    def begin(self, job: Job) -> None:
        """The request that is being answered here has this job."""

    def noted(self, note: Note, now: float) -> None:
        """The pool has noted something."""

    def ended(self, job: Job, outcome: Outcome, now: float) -> None:
        """A job has its answer."""

    def hurry(self) -> None:
        """Wait for nobody at the end."""

    async def close(self) -> None:
        """Send what was not sent yet, within moments."""


def load(environ: Mapping[str, str]) -> Traces:
    """What these variables ask for. Raises ConfigError where that cannot be had."""
    name = next((name for name in _ENDPOINTS if environ.get(name, "").strip()), None)
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name is None or exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Traces()
    if exporter != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER={exporter}: otlp and none are known", param="OTEL_TRACES_EXPORTER")
    protocol = next((said for name in _PROTOCOLS if (said := environ.get(name, "").strip())), _SPOKEN)
    if protocol != _SPOKEN:
        raise ConfigError(f"{_PROTOCOLS[1]}={protocol}: only {_SPOKEN} is spoken", param=_PROTOCOLS[1])
    try:
        parts = urlsplit(environ[name])
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{name} is no http:// or https:// address", param=name)
    try:
        from gateway.spans import Spans
    except ImportError as error:
        raise ConfigError(
            f"{name} is set, and what sends there is not installed: pip install 'replicast[telemetry]'", param=name
        ) from error
    return Spans()
