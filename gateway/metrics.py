"""The figures that add up: counted where something happens. What can be looked up instead is in gauges.py.

This file and that one alone import prometheus_client. Label values come from closed sets, and what may be zero is there
from the start, so that its first increase is seen as one. METRICS.md tells what each figure is.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from gateway.actions import Event, Note
from gateway.causes import Cause, Waste
from gateway.jobs.job import Job, Outcome
from shared import errors
from shared.errors import ReplicastError

# The moment each series began doubles their number and tells nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SUCCEEDED = "succeeded"


class Metrics:
    """The figures of one server, on a registry of its own."""

    def __init__(self, models: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "replicast_http_requests", "HTTP answers by route and status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "replicast_http_request_seconds", "Time to answer a request", ["route"], buckets=_SECONDS, registry=registry
        )
        self.in_flight = Gauge(
            "replicast_http_requests_in_flight", "Requests that have no whole answer yet", registry=registry
        )
        self.errors = Counter(
            "replicast_http_errors", "Answers that say what went wrong, by its code", ["code"], registry=registry
        )
        self._events = Counter(
            "replicast_events", "What happened to workers, jobs and the wire", ["event"], registry=registry
        )
        self._images = Counter("replicast_images", "Pictures made", ["model"], registry=registry)
        self._image_bytes = Counter("replicast_image_bytes", "Bytes of pictures made", ["model"], registry=registry)
        self._phases = Histogram(
            "replicast_image_phase_seconds",
            "Where a picture's time went",
            ["model", "phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "replicast_image_batch_size",
            "How many pictures shared a picture's call",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self._finished = Counter(
            "replicast_jobs_finished",
            "Accepted jobs that are over, by outcome",
            ["model", "outcome"],
            registry=registry,
        )
        self._retries = Counter(
            "replicast_job_retries", "Jobs handed out again, by why", ["model", "reason"], registry=registry
        )
        self._wasted = Counter(
            "replicast_wasted_work_seconds",
            "What devices worked for nobody, by why",
            ["model", "reason"],
            registry=registry,
        )
        self.ignored = Counter(
            "replicast_ignored_parameters", "Parameters of requests that nobody here knows", registry=registry
        )
        self.lag = Histogram(
            "replicast_loop_lag_seconds", "How late the event loop wakes", buckets=_SECONDS, registry=registry
        )
        self._tasks = Gauge("replicast_tasks", "Tasks of the event loop", registry=registry)
        Info("replicast_build", "What is running", registry=registry).info(
            {"version": version("replicast"), "python": platform.python_version()}
        )
        ProcessCollector(registry=registry)
        self._begin(models)

    def watch(self, live: Collector) -> None:
        """Read this too whenever the figures are asked for."""
        self.registry.register(live)

    def noted(self, note: Note, now: float) -> None:
        """Count what the pool has noted."""
        self._events.labels(note.event).inc()
        if note.job is None:
            return
        reason = note.fields.get("reason")
        if note.event == "job_requeued":
            self._retries.labels(note.job.model, reason).inc()
        elif note.event == "work_lost" and note.since is not None:
            seconds = max(0.0, now - note.since) / int(str(note.fields["shared"]))
            self._wasted.labels(note.job.model, reason).inc(seconds)

    def ended(self, job: Job, outcome: Outcome, now: float) -> None:
        """Count an accepted job that has its answer, and where its time went."""
        if isinstance(outcome, ReplicastError):
            self._finished.labels(job.model, outcome.code).inc()
            return
        self._finished.labels(job.model, _SUCCEEDED).inc()
        self._images.labels(job.model).inc(len(outcome.images))
        self._image_bytes.labels(job.model).inc(sum(facts.bytes for facts in outcome.facts))
        timings = outcome.timings
        self._batches.labels(job.model).observe(timings.batch)
        spent = {
            "queue": outcome.queue_ms + timings.wait_ms,
            "inference": timings.inference_ms,
            "encode": timings.encode_ms,
        }
        spent["dispatch"] = max(0.0, (now - job.accepted) * 1000 - sum(spent.values()))
        for phase, ms in spent.items():
            self._phases.labels(job.model, phase).observe(ms / 1000)

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """As `watch`, for the tasks of the server's loop: one that nobody ends is a leak."""
        self._tasks.set_function(lambda: len(asyncio.all_tasks(loop)))

    def text(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def _begin(self, models: Iterable[str]) -> None:
        """Have the series of every closed set."""
        for event in get_args(Event):
            self._events.labels(event)
        for error in errors.tree():
            self.errors.labels(error.code)
        for model in models:
            self._images.labels(model)
            self._image_bytes.labels(model)
            self._finished.labels(model, _SUCCEEDED)
            for cause in get_args(Cause):
                self._retries.labels(model, cause)
            for why in get_args(Waste):
                self._wasted.labels(model, why)
