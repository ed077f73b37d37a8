"""A live server is held to what it publishes: requests are made from the description, and answers checked by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server import ROOT, Serve, Server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
IMAGES = ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations")


@pytest.fixture(scope="module")
def server(serve_for_all: Serve) -> Server:
    return serve_for_all("--device", "stub:2", "--model", "stub", "--model", "org/second=stub")


def tried(server: Server, folder: Path, *flags: str, checks: tuple[str, ...] = CHECKS) -> dict[str, Any]:
    """The report of a run that has to find nothing."""
    report = folder / "report.json"
    program = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{server.address}/openapi.json",
        "--seed",
        "1",
    ]
    options = ["--checks", ",".join(checks), "--continue-on-failure", "--no-color", "--generation-database", "none"]
    # Whoever administers can start as many workers as are asked for: no toy for a machine of two cores.
    options += ["--exclude-path-regex", "^/v1/admin"]
    reports = ["--report", "json", "--report-json-path", str(report), "--warnings", "off"]
    passed = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = passed | {"SCHEMATHESIS_HOOKS": "tests.process.openapi_hooks", "PYTHONPATH": str(ROOT)}
    # In a folder of its own: it keeps what it found beside itself.
    ran = subprocess.run(
        [*program, *options, *reports, *flags], cwd=folder, env=environment, capture_output=True, text=True, timeout=540
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["complete"]
    assert (found["failures"], found["errors"]) == ([], [])
    return found


def answered(server: Server, status: str) -> dict[str, float]:
    """How many requests for pictures had this status, by route."""
    return {path: server.metric("replicast_http_requests_total", route=path, status=status) for path in IMAGES}


@pytest.mark.timeout(300)
def test_a_thousand_requests_find_nothing_undocumented(server: Server, tmp_path: Path) -> None:
    found = tried(server, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--no-shrink")
    assert found["operations"]["tested"] == 18
    assert found["test_cases"]["generated"] >= 1000
    # They came far enough: pictures were drawn on every route, and refused.
    assert min(answered(server, "200").values()) >= 5
    assert min(answered(server, "400").values()) >= 50
    assert server.metric("replicast_http_requests_total", status="500") == 0


def test_the_examples_in_the_description_are_answered(server: Server, tmp_path: Path) -> None:
    before = answered(server, "200")
    found = tried(server, tmp_path, "--phases", "examples", checks=(*CHECKS, "positive_data_acceptance"))
    assert found["test_cases"]["generated"] >= 3
    after = answered(server, "200")
    assert all(after[path] > before[path] for path in IMAGES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_thousand_requests_find_nothing_undocumented(server: Server, tmp_path: Path) -> None:
    found = tried(server, tmp_path, "--max-examples", "500")
    assert found["test_cases"]["generated"] >= 5000
    assert server.metric("replicast_http_requests_total", status="500") == 0
