"""The figures that can be looked up: read from the pool, the supervisor and the rest whenever somebody asks."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.admission import wait_seconds
from gateway.causes import Death
from gateway.health import STATES, ready_replicas, state_of
from gateway.intake import Connections, Intake, Refusal
from gateway.jobs.job import JobState
from gateway.keeper import Facts
from gateway.pool import Pool
from gateway.results import Results


@dataclass(frozen=True, eq=False)
class Live(Collector):
    """What can be computed is not stored. `started` is in monotonic seconds, `term` numbers the gateway's starts."""

    pool: Pool
    facts: Callable[[], Mapping[str, Facts]]
    intake: Intake
    connections: Connections
    results: Results
    data_dir: Path
    started: float
    term: int

    def collect(self) -> Iterator[Metric]:
        """Every figure of this file, as it is now."""
        now = time.monotonic()
        yield from self._server(now)
        yield from self._kept()
        yield from self._models(now)
        yield from self._workers(now)

    def _server(self, now: float) -> Iterator[Metric]:
        yield GaugeMetricFamily("replicast_uptime_seconds", "Since this gateway started", now - self.started)
        yield GaugeMetricFamily("replicast_term", "Number of this start on its data folder", self.term)
        yield GaugeMetricFamily("replicast_draining", "Whether the server is shutting down", self.pool.draining)
        yield GaugeMetricFamily("replicast_http_connections", "Open connections", self.connections.open)
        yield GaugeMetricFamily(
            "replicast_http_connections_limit", "Connections that may be open", self.connections.most
        )
        refused = CounterMetricFamily(
            "replicast_http_connections_refused", "Connections closed without a request", labels=["reason"]
        )
        for reason in get_args(Refusal):
            refused.add_metric([reason], self.connections.refused[reason])
        yield refused
        yield GaugeMetricFamily(
            "replicast_http_body_bytes", "Bytes of request bodies in memory", self.intake.held_bytes
        )
        yield GaugeMetricFamily(
            "replicast_http_body_limit_bytes", "Bytes of request bodies that may be in memory", self.intake.most_bytes
        )

    def _kept(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("replicast_results", "Pictures kept behind signed paths", self.results.files)
        yield GaugeMetricFamily("replicast_results_bytes", "Bytes of the pictures kept", self.results.held_bytes)
        yield GaugeMetricFamily(
            "replicast_results_limit_bytes", "Bytes of pictures that may be kept", self.results.max_bytes
        )
        try:
            disk = shutil.disk_usage(self.data_dir)
        except OSError:
            return
        yield GaugeMetricFamily("replicast_disk_free_bytes", "Bytes free where the data folder is", disk.free)
        yield GaugeMetricFamily("replicast_disk_size_bytes", "Bytes of the disk where the data folder is", disk.total)

    def _models(self, now: float) -> Iterator[Metric]:
        pool = self.pool
        jobs = GaugeMetricFamily("replicast_jobs", "Accepted jobs that are not over", labels=["model", "state"])
        wait = GaugeMetricFamily(
            "replicast_queue_predicted_wait_seconds",
            "How long what came now would wait, as predicted",
            labels=["model"],
        )
        replicas = GaugeMetricFamily(
            "replicast_model_ready_replicas", "Replicas that can serve the model now", labels=["model"]
        )
        held = Counter((job.model, job.state) for job in pool.jobs.values())
        for model in pool.wanted.models:
            for state in (JobState.QUEUED, JobState.RUNNING):
                jobs.add_metric([model.id, state.value], held[model.id, state])
            wait.add_metric([model.id], wait_seconds(model.id, pool.ledger, pool.workers, now))
            replicas.add_metric([model.id], ready_replicas(pool, model.id))
        yield jobs
        yield wait
        yield GaugeMetricFamily("replicast_queue_limit", "Jobs of one model that may wait", pool.limits.max_queue)
        yield replicas

    def _workers(self, now: float) -> Iterator[Metric]:
        pool = self.pool
        states = GaugeMetricFamily(
            "replicast_worker_state", "1 for the state that a worker is in", labels=["worker", "state"]
        )
        restarts = CounterMetricFamily(
            "replicast_worker_restarts", "Starts after the first, by why", labels=["worker", "reason"]
        )
        step = GaugeMetricFamily("replicast_worker_in_step", "Whether it has the wanted state", labels=["worker"])
        suspect = GaugeMetricFamily("replicast_worker_suspect", "Whether it misses pings", labels=["worker"])
        jobs = GaugeMetricFamily("replicast_worker_jobs", "Jobs in its hands", labels=["worker"])
        age = GaugeMetricFamily(
            "replicast_worker_step_age_seconds", "Since its device made a step while it has work", labels=["worker"]
        )
        memory = GaugeMetricFamily("replicast_worker_memory_bytes", "Memory of its models", labels=["worker"])
        loaded = GaugeMetricFamily(
            "replicast_model_memory_bytes", "Memory of a model on its device", labels=["model", "worker"]
        )
        for name, fact in self.facts().items():
            present = state_of(pool, name, fact)
            for state in STATES:
                states.add_metric([name, state], state == present)
            for reason in get_args(Death):
                restarts.add_metric([name, reason], fact.restarts[reason])
            worker = pool.workers.get(name)
            in_step = worker is not None and worker.version == pool.wanted.version
            step.add_metric([name], in_step)
            suspect.add_metric([name], worker is not None and worker.missed >= pool.limits.suspect_after)
            jobs.add_metric([name], len(worker.jobs) if worker else 0)
            # While it loads it makes no step, and need not.
            age.add_metric([name], worker.step_age(now) if worker and in_step else 0.0)
            memory.add_metric([name], worker.memory_bytes if worker else 0)
            for model in pool.wanted.models:
                if worker and (outcome := worker.outcomes.get(model.id)):
                    loaded.add_metric([model.id, name], outcome.memory_bytes)
        yield from (states, restarts, step, suspect, jobs, age, memory, loaded)
