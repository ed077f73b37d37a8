"""The spans of requests and of their pictures, by OpenTelemetry's SDK; loaded only where traces.py finds an endpoint.

A request's span is FastAPI's. Below it each picture has one, and below that its phases: `queue`, `dispatch`,
`inference`, `encode`, and an `attempt` for each that was lost. They are made here from what the worker tells when it is
done, so that no worker needs the SDK: how long one took is the worker's word, where it began is our guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Status, StatusCode

from gateway.actions import Note
from gateway.jobs.job import Job, Outcome, Result
from gateway.traces import Traces
from shared import logs
from shared.errors import Cancelled, ConfigError

_FLUSH_SECONDS = 5.0
_LONGEST_VALUE = 512

log = logs.get("spans")


@dataclass(slots=True)
class _Told:
    """A picture's span, since when it waits for a worker, and what makes wall time of our own, in nanoseconds."""

    span: trace.Span
    queued: float
    epoch: int

    def wall(self, moment: float) -> int:
        """A moment in the nanoseconds that spans are told in; by one reckoning, so that none of them overlap."""
        return self.epoch + int(moment * 1e9)


class Spans(Traces):
    """Sends by OTLP, from a thread of its own, what it is told; without an `exporter` to where the variables say.

    At most so many spans wait as the variables allow, 2048 if they do not say: a collector that is gone costs spans.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """Raises ConfigError for a variable that cannot be followed."""
        # Each failed attempt is told at warning: that a batch was given up is enough.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        service = Resource({"service.name": "replicast", "service.version": version("replicast")})
        try:
            sending = BatchSpanProcessor(exporter or OTLPSpanExporter())
            self.provider = TracerProvider(
                resource=Resource.create().merge(service).merge(OTELResourceDetector().detect()),
                shutdown_on_exit=False,
                span_limits=SpanLimits(max_span_attribute_length=_LONGEST_VALUE),
            )
        except ValueError as error:
            raise ConfigError(f"OpenTelemetry's variables cannot be followed: {error}") from error
        self.provider.add_span_processor(_Discreet())
        self.provider.add_span_processor(sending)
        self._tracer = self.provider.get_tracer("replicast", version("replicast"))
        self._over = asyncio.Event()

    def begin(self, job: Job) -> None:
        """The request that is being answered here has this job: its span begins, below the request's."""
        request = trace.get_current_span()
        if not request.is_recording():
            return
        request.set_attribute("replicast.request_id", job.request_id)
        attributes = {
            "replicast.request_id": job.request_id,
            "replicast.job": job.id,
            "replicast.model": job.model,
            "replicast.task": job.task,
            "replicast.width": job.parameters.width,
            "replicast.height": job.parameters.height,
            "replicast.steps": job.parameters.steps,
        }
        wall, now = time.time_ns(), time.monotonic()
        span = self._tracer.start_span("image", attributes=attributes, start_time=wall)
        job.trace = _Told(span, now, wall - int(now * 1e9))

    def noted(self, note: Note, now: float) -> None:
        """Only an attempt that was lost is worth a span."""
        if note.event != "job_requeued" or note.job is None or note.since is None:
            return
        told = note.job.trace
        if isinstance(told, _Told):
            lost: dict[str, str | int] = {
                "replicast.worker": str(note.fields["worker"]),
                "replicast.attempt": int(str(note.fields["attempt"])),
            }
            self._phase(told, "queue", told.queued, note.since)
            self._phase(told, "attempt", note.since, now, lost, error=str(note.fields["reason"]))
            told.queued = now

    def ended(self, job: Job, outcome: Outcome, now: float) -> None:
        """A job has its answer: its span ends, and those of its phases are made."""
        told = job.trace
        if not isinstance(told, _Told):
            return
        job.trace = None
        code = "succeeded" if isinstance(outcome, Result) else outcome.code
        error = "" if isinstance(outcome, Result | Cancelled) else code
        waited = job.dispatched if job.worker else now
        self._phase(told, "queue", min(told.queued, waited), waited)
        if isinstance(outcome, Result):
            inference, encode = outcome.timings.inference_ms / 1000, outcome.timings.encode_ms / 1000
            # That it has begun is told by a message that may be dropped.
            began = job.began if job.started else max(job.dispatched, now - inference - encode)
            self._phase(told, "dispatch", job.dispatched, began)
            self._phase(told, "inference", began, min(now, began + inference))
            self._phase(told, "encode", min(now, began + inference), min(now, began + inference + encode))
        elif job.worker:
            self._phase(told, "dispatch", job.dispatched, job.began if job.started else now)
            if job.started:
                self._phase(told, "inference", job.began, now, error=error)
        span = told.span
        span.set_attributes({"replicast.worker": job.worker, "replicast.attempt": job.attempt})
        span.set_attribute("replicast.outcome", code)
        _mark(span, error)
        span.end(told.wall(now))

    def hurry(self) -> None:
        """Wait for nobody at the end."""
        self._over.set()

    async def close(self) -> None:
        """Send what was not sent yet; a collector that does not answer is waited for for some seconds."""
        loop = asyncio.get_running_loop()

        def flush() -> None:
            self.provider.shutdown()
            # Too late, the loop is gone.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._over.set)

        threading.Thread(target=flush, name="spans-flush", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._over.wait()
        except TimeoutError:
            log.warning("spans_lost", seconds=_FLUSH_SECONDS)

    def _phase(
        self,
        told: _Told,
        name: str,
        start: float,
        end: float,
        attributes: Mapping[str, str | int] | None = None,
        error: str = "",
    ) -> None:
        above = trace.set_span_in_context(told.span, Context())
        span = self._tracer.start_span(name, above, attributes=attributes, start_time=told.wall(start))
        _mark(span, error)
        span.end(told.wall(max(start, end)))


class _Discreet(SpanProcessor):
    """What FastAPI writes into a request's span of its address may hold what opens a result, or a client's mistake."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Take it out, while the span can still be changed."""
        said = span.attributes or {}
        if "url.path" in said:
            span.set_attribute("url.path", logs.redact(str(said["url.path"])))
        if "url.query" in said:
            span.set_attribute("url.query", "[redacted]")


def _mark(span: trace.Span, error: str) -> None:
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR, error))
