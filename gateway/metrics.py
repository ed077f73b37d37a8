"""Every metric. The only file that imports prometheus_client. Label values come from closed sets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.actions import Event
from gateway.intake import Intake
from gateway.jobs.job import JobState
from gateway.keeper import Facts, Standing
from gateway.pool import Pool
from gateway.results import Results
from gateway.workers import State

# The moment each series began doubles their number and tells nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server, on a registry of its own."""

    def __init__(self, term: int) -> None:
        self.registry = CollectorRegistry()
        self._started = time.monotonic()
        self.term = term
        self.requests = Counter("replicast_http_requests", "HTTP answers", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "replicast_http_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.events = Counter("replicast_events", "What the pool noted, by event", ["event"], registry=self.registry)
        for event in get_args(Event):
            self.events.labels(event)
        self.images = Counter("replicast_images", "Pictures answered", ["model"], registry=self.registry)
        self.image_bytes = Counter(
            "replicast_image_bytes", "Bytes of pictures answered", ["model"], registry=self.registry
        )
        self.phases = Histogram(
            "replicast_image_phase_seconds",
            "Where a picture's time went",
            ["model", "phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "replicast_image_batch_size",
            "How many pictures shared a picture's call",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.ignored = Counter("replicast_ignored_parameters", "Parameters nobody here knows", registry=self.registry)
        self.lag = Histogram(
            "replicast_loop_lag_seconds", "How late the event loop wakes", buckets=_SECONDS, registry=self.registry
        )

    def watch(self, pool: Pool, facts: Callable[[], dict[str, Facts]]) -> None:
        """Read the pool and the supervisor whenever the figures are asked for."""
        self.registry.register(_Live(pool, facts, self._started, self.term))

    def watch_results(self, results: Results) -> None:
        """As `watch`, for the pictures that are kept for a while."""
        files = Gauge("replicast_results", "Pictures kept behind signed paths", registry=self.registry)
        size = Gauge("replicast_results_bytes", "Bytes of the pictures kept", registry=self.registry)
        files.set_function(lambda: results.files)
        size.set_function(lambda: results.held_bytes)

    def watch_intake(self, intake: Intake) -> None:
        """As `watch`, for what requests hold in memory."""
        held = Gauge("replicast_bytes_in_flight", "Bytes of request bodies in memory", registry=self.registry)
        held.set_function(lambda: intake.held_bytes)

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """As `watch`, for the tasks of the server's loop: one that nobody ends is a leak."""
        tasks = Gauge("replicast_tasks", "Tasks of the event loop", registry=self.registry)
        tasks.set_function(lambda: len(asyncio.all_tasks(loop)))

    def text(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _Live(Collector):
    """What can be computed is not stored."""

    def __init__(self, pool: Pool, facts: Callable[[], dict[str, Facts]], started: float, term: int) -> None:
        self._pool, self._facts, self._started, self._term = pool, facts, started, term

    def collect(self) -> Iterator[Metric]:
        workers = GaugeMetricFamily("replicast_workers", "Workers by state", labels=["state"])
        for state in State:
            workers.add_metric([state.value], sum(w.state is state for w in self._pool.workers.values()))
        yield workers
        standings = GaugeMetricFamily("replicast_worker_slots", "Places for workers by standing", labels=["standing"])
        for standing in Standing:
            standings.add_metric([standing.value], sum(f.standing is standing for f in self._facts().values()))
        yield standings
        jobs = GaugeMetricFamily("replicast_jobs", "Accepted jobs that are not over", labels=["model", "state"])
        memory = GaugeMetricFamily(
            "replicast_model_memory_bytes", "Memory of a model on its device", labels=["model", "worker"]
        )
        for model in self._pool.wanted.models:
            for state_ in (JobState.QUEUED, JobState.RUNNING):
                count = sum(job.model == model.id and job.state is state_ for job in self._pool.jobs.values())
                jobs.add_metric([model.id, state_.value], count)
            for worker in self._pool.workers.values():
                if outcome := worker.outcomes.get(model.id):
                    memory.add_metric([model.id, worker.name], outcome.memory_bytes)
        yield jobs
        yield memory
        restarts = CounterMetricFamily("replicast_worker_restarts", "Restarts of a worker", labels=["worker"])
        for name, fact in self._facts().items():
            restarts.add_metric([name], fact.restarts)
        yield restarts
        yield GaugeMetricFamily(
            "replicast_uptime_seconds", "Since this gateway started", time.monotonic() - self._started
        )
        yield GaugeMetricFamily("replicast_term", "Number of this start on its data folder", self._term)
