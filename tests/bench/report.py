"""Pure: from the runs to the figures, and from the figures to a table. Nothing here measures anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from tests.bench.load import Tally

# By case, replicas and clients.
Ratios = dict[tuple[str, int, int], float]


@dataclass(frozen=True)
class Case:
    """What is served: how many replicas, and how long each sleeps over a picture (0: not at all)."""

    name: str
    replicas: int
    step_seconds: float
    clients: tuple[int, ...]

    def ideal(self, clients: int) -> float:
        """Pictures a second if nothing but the sleep took any time; 0 where there is no sleep."""
        return min(clients, self.replicas) / self.step_seconds if self.step_seconds else 0.0


@dataclass(frozen=True)
class Measured:
    """One run of one server, and the CPU its processes used meanwhile."""

    server: str
    clients: int
    tally: Tally
    server_cpu_seconds: float

    @property
    def rate(self) -> float:
        """Good answers a second, from the first request to the last answer."""
        return len(self.tally.latencies_ms) / self.tally.seconds if self.tally.seconds else 0.0


@dataclass(frozen=True)
class Row:
    """One server in one cell, over all its rounds."""

    case: str
    replicas: int
    clients: int
    server: str
    requests: int
    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    server_cpu_ms: float
    client_cpu_ms: float
    client_busy: float
    share: float
    errors: dict[str, int]


@dataclass(frozen=True)
class Started:
    """How a server began, and what it held."""

    case: str
    replicas: int
    server: str
    live_seconds: float
    ready_seconds: float
    idle_listener_mb: float
    idle_all_mb: float
    loaded_all_mb: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of all do not exceed (nearest rank); NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def summarise(case: Case, runs: Sequence[Measured]) -> Row:
    """The row of one server in one cell: the median rate of its rounds, latencies and CPU of all rounds together."""
    latencies = [ms for run in runs for ms in run.tally.latencies_ms]
    errors: Counter[str] = Counter()
    for run in runs:
        errors.update(run.tally.errors)
    answers = len(latencies)
    client_cpu, seconds = sum(run.tally.cpu_seconds for run in runs), sum(run.tally.seconds for run in runs)
    rate, ideal = median(run.rate for run in runs), case.ideal(runs[0].clients)
    return Row(
        case=case.name,
        replicas=case.replicas,
        clients=runs[0].clients,
        server=runs[0].server,
        requests=answers,
        rate=rate,
        p50_ms=percentile(latencies, 50),
        p95_ms=percentile(latencies, 95),
        p99_ms=percentile(latencies, 99),
        server_cpu_ms=1000 * sum(run.server_cpu_seconds for run in runs) / answers if answers else math.nan,
        client_cpu_ms=1000 * client_cpu / answers if answers else math.nan,
        client_busy=client_cpu / seconds if seconds else math.nan,
        share=rate / ideal if ideal else math.nan,
        errors=dict(errors),
    )


def ratio(ours: Sequence[Measured], theirs: Sequence[Measured]) -> float:
    """Our rate over theirs: the median of the rounds, since the two runs of a round had the same machine."""
    pairs = [(a.rate, b.rate) for a, b in zip(ours, theirs, strict=True)]
    return median(a / b if b else math.inf for a, b in pairs)


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A plain text table: the first column to the left, all others to the right."""
    rows = [list(head), *([_shown(cell) for cell in line] for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    out = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    out.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in out)


def rates(rows: Sequence[Row], ratios: Ratios) -> str:
    """The main table; the ratio stands in the line of the first server of each cell."""
    lines = []
    for row in rows:
        times = (
            ratios.get((row.case, row.replicas, row.clients), math.nan) if row.server == rows[0].server else math.nan
        )
        share = f"{row.share:.2f}" if not math.isnan(row.share) else ""
        ratio_ = f"{times:.2f}" if not math.isnan(times) else ""
        errors = ", ".join(f"{count} {name}" for name, count in row.errors.items()) or "0"
        lines.append(
            [
                f"{_where(row.case, row.replicas)}, {row.clients} client{'s'[: row.clients > 1]}",
                *(row.server, row.rate, ratio_, row.p50_ms, row.p95_ms, row.p99_ms),
                *(f"{row.server_cpu_ms:.2f}", f"{row.client_cpu_ms:.2f}", share, errors),
            ]
        )
    head = ("case", "server", "req/s", "ratio", "p50 ms", "p95 ms", "p99 ms", "CPU ms", "client", "of ideal", "errors")
    return table(head, lines)


def starts(started: Sequence[Started]) -> str:
    """The table of start times and memory."""
    head = ("case", "server", "livez s", "ready s", "idle: listener MB", "all MB", "after load: all MB")
    return table(
        head,
        [
            [
                _where(s.case, s.replicas),
                *(s.server, f"{s.live_seconds:.2f}", f"{s.ready_seconds:.2f}"),
                *(s.idle_listener_mb, s.idle_all_mb, s.loaded_all_mb),
            ]
            for s in started
        ],
    )


def as_json(rows: Sequence[Row], started: Sequence[Started], ratios: Ratios) -> dict[str, Any]:
    """The same as a JSON object; NaN is null."""
    found = {
        "rows": [asdict(row) for row in rows],
        "starts": [asdict(each) for each in started],
        "ratios": [
            dict(zip(("case", "replicas", "clients", "ratio"), (*key, value), strict=True))
            for key, value in ratios.items()
        ],
    }
    return {
        name: [{key: None if value != value else value for key, value in line.items()} for line in lines]
        for name, lines in found.items()
    }


def _where(case: str, replicas: int) -> str:
    return f"{case}, {replicas} replica{'s'[: replicas > 1]}"


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.1f}"
    return str(cell)
