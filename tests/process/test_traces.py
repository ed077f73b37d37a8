"""Traces of a real server, as a collector gets them: one for each request, whole, and without what is private."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.collector import Collector, Span, collecting
from tests.server import ROOT, Serve, Server, command, environment, until

PROMPT = "a walrus in a purple bathtub"
ROUTE = "/v1/images/generations"
PHASES = ["queue", "dispatch", "inference", "encode"]
# What a client may hand us: its own trace, and where it is in it.
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def variables(address: str, delay_ms: int = 50) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": str(delay_ms)}


def ask(server: Server, request: str, path: str = ROUTE, traceparent: str = "", **body: object) -> int:
    headers = {"x-request-id": request} | ({"traceparent": traceparent} if traceparent else {})
    return server.http.post(path, json=body, headers=headers).status_code


def tops(collector: Collector) -> list[Span]:
    """The spans of requests: those that are named after their routes."""
    return [span for span in list(collector.spans) if not span.name.islower()]


def request_span(collector: Collector, request: str) -> Span:
    """The span of a request with a job, as soon as it is there."""
    found = until(
        lambda: [span for span in tops(collector) if span.attributes.get("replicast.request_id") == request],
        f"the span of {request}",
    )
    assert len(found) == 1
    return found[0]


def test_a_request_is_one_trace_with_its_pictures_and_their_phases(serve: Serve, collector: Collector) -> None:
    env = variables(collector.address) | {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=me",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
    }
    models = ("--model", "stub?step_seconds=0.02&steps=4", "--model", "broken=stub?fail_at_step=1")
    server = serve("--device", "stub:2", *models, env=env)
    assert ask(server, "two", prompt=PROMPT, n=2, size="64x64", traceparent=f"00-{TRACE}-{PARENT}-01") == 200
    top = request_span(collector, "two")
    assert (top.name, top.trace, top.parent, top.failed) == (f"POST {ROUTE}", TRACE, PARENT, False)
    assert (top.attributes["http.route"], top.attributes["http.response.status_code"]) == (ROUTE, 200)
    assert (top.service["service.name"], top.service["deployment.environment"]) == ("replicast", "test")
    assert collector.headers[0]["x-tenant"] == "me"

    pictures = collector.below(top)
    assert [picture.name for picture in pictures] == ["image", "image"]
    assert {picture.attributes["replicast.worker"] for picture in pictures} == {"stub0", "stub1"}
    assert len({picture.attributes["replicast.job"] for picture in pictures}) == 2
    for picture in pictures:
        told = {name.removeprefix("replicast."): value for name, value in picture.attributes.items()}
        assert (told["model"], told["task"], told["attempt"], told["outcome"]) == ("stub", "generate", 1, "succeeded")
        assert (told["width"], told["height"], told["steps"]) == (64, 64, 4)
        phases = collector.below(picture)
        assert [phase.name for phase in phases] == PHASES
        assert {span.trace for span in (picture, *phases)} == {TRACE}
        assert not any(span.failed for span in (picture, *phases))
        # They lie within the picture, one after the other, and the device's is as long as its steps.
        moments = [picture.start, *(moment for phase in phases for moment in (phase.start, phase.end)), picture.end]
        assert moments == sorted(moments)
        assert phases[2].end - phases[2].start >= 4 * 0.02e9
    assert top.start <= pictures[0].start
    assert max(picture.end for picture in pictures) <= top.end

    # Another request is another trace; what goes wrong in it is marked, where it went wrong.
    assert ask(server, "failed", prompt=PROMPT, model="broken") == 500
    top = request_span(collector, "failed")
    assert top.trace != TRACE
    assert (top.parent, top.failed, top.attributes["error.type"]) == ("", True, "500")
    [picture] = collector.below(top)
    assert (picture.failed, picture.attributes["error.type"]) == (True, "job_failed")
    assert picture.attributes["replicast.outcome"] == "job_failed"
    assert [(phase.name, phase.failed) for phase in collector.below(picture)] == [
        ("queue", False),
        ("dispatch", False),
        ("inference", True),
    ]

    # A trace that is none is no trace; what a caller does not want traced is not; health never is.
    for place, nonsense in enumerate(
        (f"00-{'0' * 32}-{PARENT}-01", "00-zz-zz-01", f"ff-{TRACE}-{PARENT}-01", "x" * 999)
    ):
        assert ask(server, f"nonsense{place}", prompt=PROMPT, traceparent=nonsense) == 200
        assert request_span(collector, f"nonsense{place}").parent == ""
    assert ask(server, "unwanted", prompt=PROMPT, traceparent=f"00-{TRACE[::-1]}-{PARENT}-00") == 200
    linked = server.post(prompt=PROMPT, response_format="url").json()["data"][0]["url"]
    assert server.http.get(f"{linked}?page=walrus-token").status_code == 200
    assert ask(server, "last", prompt=PROMPT) == 200
    request_span(collector, "last")
    assert TRACE[::-1] not in {span.trace for span in collector.spans}
    assert {span.attributes["http.route"] for span in tops(collector)} == {
        ROUTE,
        "/v1/images/files/{name}",
    }

    assert server.stop() == 0
    sent = b"".join(collector.bodies)
    for private in (PROMPT, "walrus", linked.rpartition("/")[2]):
        assert private.encode() not in sent


def test_a_lost_attempt_is_in_the_trace_of_its_request(
    serve: Serve, collector: Collector, clients: ThreadPoolExecutor, gate: Path
) -> None:
    server = serve("--device", "stub:2", "--model", f"stub?gate={gate}", env=variables(collector.address))
    busy = clients.submit(ask, server, "moved", prompt=PROMPT)
    name = until(lambda: next((name for name, jobs in server.jobs().items() if jobs), None), "it runs")
    os.kill(server.workers()[name], signal.SIGKILL)
    until(lambda: server.event("job_requeued"), "it is requeued")
    gate.touch()
    assert busy.result(60.0) == 200
    [picture] = collector.below(request_span(collector, "moved"))
    assert (picture.attributes["replicast.attempt"], picture.failed) == (2, False)
    assert picture.attributes["replicast.worker"] != name
    phases = collector.below(picture)
    assert [phase.name for phase in phases] == ["queue", "attempt", *PHASES]
    lost = phases[1]
    assert (lost.failed, lost.attributes["error.type"]) == (True, "ended")
    assert (lost.attributes["replicast.worker"], lost.attributes["replicast.attempt"]) == (name, 1)


def test_what_was_not_sent_yet_is_sent_at_the_end(serve: Serve, collector: Collector) -> None:
    server = serve("--device", "stub:1", env=variables(collector.address, delay_ms=600_000))
    assert ask(server, "early", prompt=PROMPT) == 200
    assert collector.spans == []
    assert server.stop() == 0
    assert sorted(span.name for span in collector.spans) == sorted([f"POST {ROUTE}", "image", *PHASES])


def test_a_collector_that_is_dead_holds_up_no_answer_and_no_end(serve: Serve) -> None:
    # Whoever dials is let in, and never hears a word.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as mute:
        server = serve("--device", "stub:1", env=variables(f"http://127.0.0.1:{mute.getsockname()[1]}"))
        for number in range(20):
            began = time.monotonic()
            assert ask(server, f"r{number}", prompt=PROMPT) == 200
            assert time.monotonic() - began < 5
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
    assert "spans_lost" in server.log


def test_an_endpoint_that_cannot_be_served_is_one_line_and_no_server(runtime: Path, tmp_path: Path) -> None:
    env = environment(runtime) | variables("http://127.0.0.1:1") | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    folder = ("--data-dir", str(tmp_path / "data"))
    ended = subprocess.run(command("serve", *folder), cwd=ROOT, env=env, capture_output=True, text=True, timeout=60.0)
    assert ended.returncode == 2
    assert ended.stderr == "replicast: OTEL_EXPORTER_OTLP_PROTOCOL=grpc: only http/protobuf is spoken\n"
