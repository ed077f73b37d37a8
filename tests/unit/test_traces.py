"""Which variables ask for traces, and the spans of what ends early, over an exporter that keeps them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import traces
from gateway.actions import Note
from gateway.jobs.job import Job, Result
from gateway.spans import Spans
from shared import messages as m
from shared.errors import Cancelled, ConfigError, Expired
from tests.server import ROOT

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HERE = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: " "},
        {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": HERE},
        {ENDPOINT: HERE, "OTEL_TRACES_EXPORTER": "none"},
        {ENDPOINT: HERE, "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_without_an_endpoint_nothing_is_traced(environ: dict[str, str]) -> None:
    assert type(traces.load(environ)) is traces.Traces
    assert traces.load(environ).provider is None


@pytest.mark.parametrize("name", [ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
async def test_an_endpoint_is_enough(name: str) -> None:
    loaded = traces.load({name: HERE})
    assert isinstance(loaded, Spans)
    await loaded.close()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({ENDPOINT: "localhost:4318"}, "no http:// or https:// address"),
        ({ENDPOINT: "http://[::1"}, "no http:// or https:// address"),
        ({ENDPOINT: HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "only http/protobuf is spoken"),
        ({ENDPOINT: HERE, "OTEL_TRACES_EXPORTER": "zipkin"}, "otlp and none are known"),
    ],
)
def test_what_cannot_be_had_is_said_at_the_start(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        traces.load(environ)


def test_without_the_extra_it_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from gateway import traces\n"
        f"try: traces.load({{'{ENDPOINT}': '{HERE}'}})\n"
        "except traces.ConfigError as error: print(error.message)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "pip install 'replicast[telemetry]'" in ran.stdout, ran.stderr


# Spans


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    return Spans(exporter)


def job() -> Job:
    parameters = m.Parameters(prompt="a walrus", width=64, height=64, steps=4, guidance=1)
    now = time.monotonic()
    return Job("7f3a", "stub", "generate", parameters, (1,), 1e9, submitted=now, accepted=now, request_id="req_1")


@contextmanager
def asked(spans: Spans, job: Job) -> Iterator[None]:
    """A request with this job, as FastAPI would have it."""
    with spans.provider.get_tracer("test").start_as_current_span("POST /"):
        spans.begin(job)
        yield


def told(spans: Spans, exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """The spans that were sent, by name: each once, but for the request's."""
    assert spans.provider.force_flush()
    found = [span for span in exporter.get_finished_spans() if span.name != "POST /"]
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


def test_what_ends_in_the_queue_has_waited_and_no_more(spans: Spans, exporter: InMemorySpanExporter) -> None:
    waiting = job()
    with asked(spans, waiting):
        spans.ended(waiting, Expired("too late"), time.monotonic() + 2)
    found = told(spans, exporter)
    assert found.keys() == {"image", "queue"}
    assert found["image"].status.status_code is trace.StatusCode.ERROR
    assert found["image"].attributes
    assert found["image"].attributes["error.type"] == "expired"
    assert found["queue"].end_time
    assert found["queue"].start_time
    assert found["queue"].end_time - found["queue"].start_time == pytest.approx(2e9, rel=0.1)
    assert waiting.trace is None


def test_who_leaves_is_no_error(spans: Spans, exporter: InMemorySpanExporter) -> None:
    running = job()
    with asked(spans, running):
        running.worker, running.dispatched, running.attempt = "a", time.monotonic(), 1
        running.began, running.started = running.dispatched, True
        spans.ended(running, Cancelled("gone"), time.monotonic())
    found = told(spans, exporter)
    assert found.keys() == {"image", "queue", "dispatch", "inference"}
    assert all(span.status.status_code is trace.StatusCode.UNSET for span in found.values())
    assert found["image"].attributes
    assert found["image"].attributes["replicast.outcome"] == "cancelled"


def test_phases_are_guessed_where_nobody_said_when_it_began(spans: Spans, exporter: InMemorySpanExporter) -> None:
    done = job()
    with asked(spans, done):
        done.worker, done.dispatched, done.attempt = "a", time.monotonic(), 1
        result = Result((b"",), (), m.Timings(inference_ms=2000, encode_ms=500), "a", 1)
        spans.ended(done, result, done.dispatched + 3)
    found = told(spans, exporter)
    seconds = {name: ((span.end_time or 0) - (span.start_time or 0)) / 1e9 for name, span in found.items()}
    assert seconds == pytest.approx({"image": 3, "queue": 0, "dispatch": 0.5, "inference": 2, "encode": 0.5}, abs=0.1)


def test_a_job_that_nobody_traces_costs_nothing(spans: Spans, exporter: InMemorySpanExporter) -> None:
    alone = job()
    spans.begin(alone)
    assert alone.trace is None
    spans.noted(Note("job_requeued", alone, 0.0, {"worker": "a", "attempt": 1, "reason": "ended"}), 1.0)
    spans.ended(alone, Cancelled("gone"), 1.0)
    assert told(spans, exporter) == {}


def test_a_job_that_was_never_taken_is_never_told(spans: Spans, exporter: InMemorySpanExporter) -> None:
    with asked(spans, job()):
        pass
    assert told(spans, exporter) == {}


async def test_who_is_in_a_hurry_waits_for_no_collector(exporter: InMemorySpanExporter) -> None:
    class Slow(InMemorySpanExporter):
        def shutdown(self) -> None:
            time.sleep(3)

    spans = Spans(Slow())
    spans.hurry()
    began = time.monotonic()
    await spans.close()
    assert time.monotonic() - began < 1
