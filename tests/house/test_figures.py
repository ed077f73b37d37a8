"""METRICS.md and the registry of a real app name the same figures, in the form that Prometheus expects."""

import re

import pytest
from prometheus_client import CollectorRegistry

from gateway import app, settings
from gateway.home import Home
from gateway.launchers import Slot
from tests.house.figures import DOCUMENT, Figure, documented
from tests.house.tree import expect_none

UNITS = ("_seconds", "_bytes", "_info")
# Counts of things, which are their own unit.
COUNTS = re.compile(
    r"_(requests|in_flight|errors|connections|refused|parameters|jobs|limit|images|finished|retries|replicas|state"
    r"|in_step|suspect|restarts|events|results|draining|term|fds|tasks|batch_size)$"
)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    """The figures of an app that was made and never started, with their labels."""
    with pytest.MonkeyPatch.context() as patch, Home(tmp_path_factory.mktemp("data")) as home:
        patch.setenv("XDG_RUNTIME_DIR", "/tmp")
        _, state = app.create(settings.load({"model": ("stub",)}), (Slot("a", "stub", ("0",), 1),), home)
        return {figure.name: figure for figure in figures(state.metrics.registry)}


def figures(registry: CollectorRegistry) -> list[Figure]:
    # A figure without a series yet knows its labels all the same.
    counted = {c._name: c._labelnames for c in registry._collector_to_names if hasattr(c, "_labelnames")}
    found = []
    for family in registry.collect():
        assert family.documentation
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        labels |= set(counted.get(family.name, ())) | set(getattr(family, "_labelnames", ()))
        kind, suffix = {"info": ("gauge", "_info"), "counter": ("counter", "_total")}.get(
            family.type, (family.type, "")
        )
        found.append(Figure(family.name + suffix, kind, frozenset(labels)))
    return found


def test_the_document_and_the_registry_name_the_same_figures(registered: dict[str, Figure]) -> None:
    expect_none(registered.keys() - documented().keys(), f"a figure that {DOCUMENT} does not name")
    gone = {name for name in documented().keys() - registered.keys() if not name.startswith("process_")}
    expect_none(gone, f"a figure that {DOCUMENT} names and the app does not have")
    wrong = [f"{name}: {each}" for name, each in registered.items() if each != documented()[name]]
    expect_none(wrong, f"not as {DOCUMENT} says")


def test_each_figure_is_named_as_prometheus_would_have_it(registered: dict[str, Figure]) -> None:
    wrong = []
    for figure in registered.values():
        plain = figure.name.removesuffix("_total")
        if not re.fullmatch(r"(replicast|process)_[a-z][a-z_]*[a-z]", figure.name):
            wrong.append(f"{figure.name}: not a name")
        if (figure.type == "counter") != figure.name.endswith("_total"):
            wrong.append(f"{figure.name}: what adds up, and that alone, ends in _total")
        if not plain.endswith(UNITS) and not COUNTS.search(plain):
            wrong.append(f"{figure.name}: neither a unit nor a count of things")
        if re.search(r"_(ms|millis\w*|minutes|hours|kb|mb|mib|percent|ratio)(_|$)", plain):
            wrong.append(f"{figure.name}: not a base unit")
        if figure.labels & {"le", "quantile", "job", "instance", "type", "name", "id", "path", "request", "prompt"}:
            wrong.append(f"{figure.name}: a label that is taken, or has no bound")
    expect_none(wrong, "against the conventions of Prometheus")
