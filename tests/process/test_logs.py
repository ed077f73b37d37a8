"""The log of a real server and its workers: each line is JSON, says what it is about, and nothing that is private."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.server import Serve, Server, until

PROMPT = "a walrus in a purple bathtub, for nobody's eyes"
SECRET = "sk-0123456789abcdefghijkl"
ROUTE = "/v1/images/generations"


def lines(server: Server) -> list[dict[str, Any]]:
    """Every whole line of the log, parsed."""
    return [json.loads(line) for line in server.log.splitlines(keepends=True) if line.endswith("\n")]


def answered(server: Server, request: str) -> dict[str, Any]:
    """The line of one request."""
    found = until(
        lambda: [line for line in lines(server) if line["event"] == "answered" and line["request"] == request], "a line"
    )
    assert len(found) == 1
    return dict(found[0])


def ask(server: Server, request: str, path: str = ROUTE, **body: object) -> int:
    headers = {"x-request-id": request, "authorization": f"Bearer {SECRET}"}
    return server.http.post(path, json=body, headers=headers).status_code


def test_every_line_is_json_with_its_ids_and_without_secrets(
    serve: Serve, clients: ThreadPoolExecutor, gate: Path
) -> None:
    models = ("--model", f"stub?gate={gate}&steps=2", "--model", "broken=stub?fail_at_step=1")
    server = serve("--device", "stub:2", *models, "--log-format", "json", "--log-level", "debug")
    gate.touch()

    # A picture, pictures, and an address that opens one.
    assert ask(server, "good", prompt=PROMPT, negative_prompt=PROMPT, n=2) == 200
    line = answered(server, "good")
    assert (line["level"], line["room"], line["route"], line["status"]) == ("info", "http", ROUTE, 200)
    assert (line["model"], line["attempts"], line["workers"]) == ("stub", 1, "stub0,stub1")
    jobs = line["jobs"].split(",")
    assert len(set(jobs)) == 2
    assert min(line["ms"], line["queue_ms"], line["inference_ms"]) >= 0
    made = until(lambda: [each for each in lines(server) if each["event"] == "run_done"][1:], "the workers' lines")
    assert {(each["request"], each["room"]) for each in made} == {("good", "engine")}
    assert {each["job"] for each in lines(server) if each["event"] == "run_done"} == set(jobs)
    assert {each["worker"] for each in lines(server) if each["event"] == "run_done"} == {"stub0", "stub1"}
    linked = server.post(prompt=PROMPT, response_format="url").json()["data"][0]["url"]
    assert server.http.get(linked).status_code == 200

    # What goes wrong says how, and of what.
    assert ask(server, "unknown", prompt=PROMPT, model="nonsense") == 404
    assert answered(server, "unknown")["code"] == "model_not_found"
    assert ask(server, "failed", prompt=PROMPT, model="broken") == 500
    failed = answered(server, "failed")
    assert (failed["code"], failed["level"], failed["model"]) == ("job_failed", "warning", "broken")
    assert failed["jobs"]
    assert failed["workers"] in ("stub0", "stub1")
    assert ask(server, "lost", path="/nonsense", prompt=PROMPT) == 404
    assert (answered(server, "lost")["level"], answered(server, "lost")["route"]) == ("debug", "none")
    assert {line["level"] for line in lines(server) if line.get("route") in ("/livez", "/readyz")} == {"debug"}

    # A worker dies: its job's lines say which, on which worker, and of whose request.
    gate.unlink()
    busy = clients.submit(ask, server, "moved", prompt=PROMPT)
    name = until(lambda: next((name for name, jobs in server.jobs().items() if jobs), None), "it runs")
    os.kill(server.workers()[name], signal.SIGKILL)
    [moved] = until(lambda: [line for line in lines(server) if line["event"] == "job_requeued"], "it is requeued")
    gate.touch()
    assert busy.result(60.0) == 200
    told = answered(server, "moved")
    assert (moved["request"], moved["worker"], moved["attempt"], moved["reason"]) == ("moved", name, 1, "ended")
    assert (told["jobs"], told["attempts"]) == (moved["job"], 2)
    assert told["workers"] != name
    lost = [line for line in lines(server) if line["event"] in ("worker_lost", "worker_exit")]
    assert {line["worker"] for line in lost} == {name}

    assert server.stop() == 0
    assert all(line.keys() >= {"event", "level", "timestamp"} for line in lines(server))
    for private in (PROMPT, "walrus", SECRET, linked.rpartition("/")[2].split(".")[2]):
        assert private not in server.log


def test_what_a_worker_writes_that_is_no_json_becomes_a_line_of_its_gateway(serve: Serve) -> None:
    # The interpreter itself complains of this, before anything of ours runs.
    noise = {"PYTHONWARNINGS": "nonsense"}
    server = serve("--device", "stub:1", "--log-format", "json", env=noise)
    own, *rest = server.log.splitlines()
    assert own.startswith("Invalid -W option"), "the gateway's own interpreter"
    said = [line for line in map(json.loads, rest) if line["event"] == "worker_said"]
    assert [(line["worker"], line["level"]) for line in said] == [("stub0", "warning")]
    assert said[0]["text"].startswith("Invalid -W option")


def test_at_the_usual_level_one_line_tells_of_a_picture_and_none_of_health(serve: Serve) -> None:
    server = serve("--device", "stub:1", "--log-format", "json")
    before = len(lines(server))
    for _ in range(5):
        server.http.get("/livez")
        server.readyz()
        server.metrics()
    server.draw(prompt=PROMPT)
    until(lambda: len(lines(server)) > before, "a line")
    time.sleep(0.2)
    assert [line["event"] for line in lines(server)[before:]] == ["answered"]
