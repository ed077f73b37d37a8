"""The dashboard and the alerts ask for figures, labels and values that there are, and each alert is tried."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import promql_parser
import pytest
import yaml

from gateway.actions import Event
from gateway.causes import Cause, Waste
from gateway.health import STATES
from gateway.intake import Refusal
from gateway.jobs.job import JobState
from shared.errors import tree
from tests.house.figures import documented, series
from tests.house.tree import ROOT, expect_none, read

BOARD = "deploy/grafana/replicast.json"
ALERTS = "deploy/prometheus/alerts.yaml"
TRIED = "deploy/prometheus/alerts_test.yaml"
SCRAPE = "deploy/prometheus/prometheus.yaml"
# What Prometheus adds to whatever it scrapes.
ADDED = {"job", "instance"}
OURS = {"up": frozenset[str]()}
VALUES = {
    "code": {error.code for error in tree()},
    "event": set(get_args(Event)),
    "phase": {"queue", "dispatch", "inference", "encode"},
    "reason": {*get_args(Cause), *get_args(Waste), *get_args(Refusal)},
    "state": {*STATES, *JobState},
}


@dataclass
class Asked:
    """What an expression asks for: figures with the labels and values wanted of them, and the labels it groups by."""

    selected: list[tuple[str, list[tuple[str, str, str]]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def asked(expression: str) -> Asked:
    """Raises ValueError where it cannot be parsed."""
    found = Asked()

    def look(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            look(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            matchers = [(each.name, str(each.op), each.value) for each in node.matchers.matchers]
            found.selected.append((node.name, matchers))
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            found.grouped |= set(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier:
            found.grouped |= set(node.modifier.matching.labels if node.modifier.matching else ())
            found.grouped |= set(node.modifier.group_labels or ())
        return True

    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), look)
    return found


def wrong(expression: str) -> Iterator[str]:
    """What this expression asks for and cannot have."""
    try:
        found = asked(expression)
    except ValueError as error:
        yield f"{expression}: {error}"
        return
    known = series() | OURS
    if not found.selected:
        yield f"{expression}: asks for nothing"
    for name, matchers in found.selected:
        if name not in known:
            yield f"{expression}: there is no {name}"
            continue
        for label, op, value in matchers:
            if label not in known[name] | ADDED:
                yield f"{expression}: {name} has no label {label}"
            elif (
                label in VALUES
                and not any(value == one or ("Re" in op and re.fullmatch(value, one)) for one in VALUES[label])
                and not value.startswith("$")
            ):
                yield f"{expression}: {label} is never {value!r}"
    labels = {label for name, _ in found.selected for label in known.get(name, ())} | ADDED
    for label in found.grouped - labels:
        yield f"{expression}: nothing in it has a label {label}"


def board() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read(BOARD))
    return content


def panels() -> list[dict[str, Any]]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(read(ALERTS))["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> str:
    """What it says to these, which has to be well."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool, of Debian's package prometheus, is not on this machine")
    ran = subprocess.run(
        ["promtool", *arguments], cwd=ROOT / "deploy" / "prometheus", capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_looking_sees_what_it_should() -> None:
    assert list(wrong('sum by (model) (rate(replicast_images_total{model=~"$model"}[5m]))')) == []
    for bad in (
        "sum(",
        "1 + 1",
        "replicast_nonsense",
        'replicast_images_total{worker="a"}',
        "sum by (worker) (replicast_images_total)",
        'replicast_worker_state{state="asleep"}',
        "max_over_time(replicast_nonsense[5m:1m])",
        "replicast_term * on (job) group_left (nonsense) replicast_build_info",
    ):
        assert list(wrong(bad)) != [], bad


def test_every_panel_asks_for_what_there_is() -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(expressions) > 40
    expect_none((line for each in expressions for line in wrong(each)), f"in {BOARD}")
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            inside = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert inside, variable
            [(name, _)] = asked(inside[1]).selected
            expect_none(wrong(inside[1]), f"in {BOARD}")
            assert inside[2] in series()[name] | ADDED


def test_every_legend_names_labels_that_come_out() -> None:
    lost = []
    for panel in panels():
        for target in panel["targets"]:
            found = asked(target["expr"])
            labels = found.grouped or {label for name, _ in found.selected for label in series()[name]} | ADDED
            kept = labels | (ADDED if "group_left" in target["expr"] else set())
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            lost += [f"{panel['title']}: {label}" for label in named - kept]
    expect_none(lost, f"a legend of {BOARD} names a label that is not there")


def test_the_board_can_be_read_by_who_did_not_write_it() -> None:
    everything = board()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    expect_none(
        (p["title"] for p in panels() if not p["description"] or not p["fieldConfig"]["defaults"]["unit"]), "bare"
    )
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another"
        taken |= cells
    sources = {json.dumps(each["datasource"]) for panel in panels() for each in (panel, *panel["targets"])}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}


def test_every_figure_of_ours_is_on_the_board_or_in_an_alert() -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    expressions += [rule["expr"] for rule in alerts()]
    shown = {name for each in expressions for name, _ in asked(each).selected}
    unseen = set()
    for figure in documented().values():
        names = {figure.name} if figure.type != "histogram" else {f"{figure.name}_bucket", f"{figure.name}_sum"}
        if figure.name.startswith("replicast_") and not names & shown:
            unseen.add(figure.name)
    # Of little use to who watches: what clients spell wrong, and what others tell better.
    assert unseen == {
        "replicast_ignored_parameters_total",
        "replicast_image_bytes_total",
        "replicast_jobs_finished_total",
        "replicast_model_memory_bytes",
        "replicast_queue_limit",
        "replicast_results",
        "replicast_uptime_seconds",
    }


def test_every_alert_asks_for_what_there_is_and_says_what_to_do() -> None:
    expect_none((line for rule in alerts() for line in wrong(rule["expr"])), f"in {ALERTS}")
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        assert rule["alert"].startswith("Replicast")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


def test_every_alert_is_tried_firing_and_quiet() -> None:
    tried: dict[str, set[bool]] = {}
    for each in yaml.safe_load(read(TRIED))["tests"]:
        for case in each["alert_rule_test"]:
            tried.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
        for fed in each["input_series"]:
            expect_none(wrong(fed["series"]), f"fed in {TRIED}")
    assert tried == {rule["alert"]: {True, False} for rule in alerts()}


def test_promtool_finds_the_alerts_and_the_example_valid() -> None:
    assert "SUCCESS" in promtool("check", "rules", "alerts.yaml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yaml")


def test_promtool_sees_the_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yaml")


def test_the_example_names_the_job_that_the_alerts_know() -> None:
    example = yaml.safe_load(read(SCRAPE))
    [job] = [scrape["job_name"] for scrape in example["scrape_configs"]]
    down = next(rule for rule in alerts() if rule["alert"] == "ReplicastDown")
    assert asked(down["expr"]).selected == [("up", [("job", "MatchOp.Equal", job)])]
    assert example["rule_files"] == ["alerts.yaml"]
