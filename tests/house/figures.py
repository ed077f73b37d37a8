"""What gateway/METRICS.md says of the figures."""

import re
from dataclasses import dataclass
from functools import cache

from tests.house.tree import read

DOCUMENT = "gateway/METRICS.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ((?:`\w+`(?:, )?)*) ?\|", flags=re.M)


@dataclass(frozen=True)
class Figure:
    """One metric, by its name on the page of /metrics, without what a histogram adds to it."""

    name: str
    type: str
    labels: frozenset[str]


@cache
def documented() -> dict[str, Figure]:
    """Each figure by its name; those of the process have no rows of their own."""
    text = read(DOCUMENT)
    rows = [Figure(name, kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in _ROW.findall(text)]
    rows += [
        Figure(name, "counter" if name.endswith("_total") else "gauge", frozenset())
        for name in re.findall(r"`(process_\w+)`", text)
    ]
    figures = {figure.name: figure for figure in rows}
    assert len(figures) == len(rows), "a figure has two rows"
    return figures


def series() -> dict[str, frozenset[str]]:
    """Each name that a query may use, with the labels that it has beside Prometheus' own."""
    found = {}
    for figure in documented().values():
        if figure.type == "histogram":
            found[f"{figure.name}_bucket"] = figure.labels | {"le"}
            found[f"{figure.name}_sum"] = found[f"{figure.name}_count"] = figure.labels
        else:
            found[figure.name] = figure.labels
    return found
