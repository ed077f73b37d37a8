"""What a server says and does while it starts, and when its workers or models never come."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.server import START_SECONDS, STOP_SECONDS, Serve, Server, environment, until
from worker.backends import stub


def expect_not_ready(server: Server, **body: object) -> str:
    """A request now is refused as not ready; what the answer says."""
    answer = server.post(prompt="a hen", **body)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    error = answer.json()["error"]
    assert error["code"] == "not_ready"
    message: str = error["message"]
    return message


def test_a_server_that_loads_slowly_is_alive_and_not_ready(serve: Serve) -> None:
    # Loading takes many times what would be silence from a worker that has loaded.
    pings = {"ping_seconds": 0.1, "gone_after_pings": 10}
    server = serve("--device", "stub:1", "--model", "stub?load_seconds=3", ready=False, **pings)
    assert server.http.get("/livez").status_code == 200
    answer = server.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    story = answer.json()
    assert story["status"] == "not_ready"
    assert not story["models"]["stub"]["ready"]
    assert "starting" in story["models"]["stub"]["reason"] or "loading" in story["models"]["stub"]["reason"]
    expect_not_ready(server)
    until(lambda: server.readyz()["workers"]["stub0"]["state"] == "loading", "the worker is loading")
    pid = server.workers()["stub0"]
    expect_not_ready(server)
    assert server.http.get("/v1/models").json()["data"] == []
    assert [row["ready"] for row in server.http.get("/v1/models?all=true").json()["data"]] == [False]
    assert "ready http" not in server.output
    server.wait_ready().draw(prompt="a hen")
    assert server.http.get("/readyz").status_code == 200
    assert server.workers()["stub0"] == pid
    assert server.event("worker_lost") == 0


def test_a_worker_that_crashes_again_and_again_is_left_alone(serve: Serve) -> None:
    server = serve(
        "--device",
        "stub:2",
        "--model",
        "stub?exit_load=true",
        ready=False,
        restart_limit=3,
        restart_window_seconds=60,
        restart_backoff_seconds=0.05,
        quarantine_seconds=600,
    )

    def quarantined() -> bool:
        return all(w["state"] == "quarantined" for w in server.readyz()["workers"].values())

    until(quarantined, "both workers are quarantined", 60.0)
    assert server.http.get("/livez").status_code == 200
    answer = server.http.get("/readyz")
    assert answer.status_code == 503
    story = answer.json()
    assert "quarantined" in story["models"]["stub"]["reason"]
    for worker in story["workers"].values():
        assert worker["restarts"] == 2
        assert worker["last_error"] == "exit status 70"
    assert "/readyz" in expect_not_ready(server)
    assert server.metric("replicast_worker_state", state="quarantined") == 2
    # Six processes and no more.
    assert server.event("worker_joined") == 6
    assert server.workers() == {}
    assert "ready http" not in server.output
    assert server.stop() == 0


def test_a_quarantined_worker_is_tried_once_in_a_while(serve: Serve) -> None:
    server = serve(
        "--device",
        "stub:1",
        "--model",
        "stub?exit_load=true",
        ready=False,
        restart_limit=2,
        restart_backoff_seconds=0,
        quarantine_seconds=0.5,
    )
    until(lambda: server.metric("replicast_worker_restarts_total") >= 3, "it was tried twice more", 60.0)
    assert server.log.count("worker_quarantined") >= 2


def test_a_model_that_cannot_be_loaded_does_not_take_the_others_with_it(serve: Serve) -> None:
    models = ("--model", "good=stub", "--model", "bad=stub?fail_load=true")
    server = serve("--device", "stub:2", *models, ready=False)
    until(server.whole, "both workers have tried")
    answer = server.http.get("/readyz")
    assert answer.status_code == 200
    story = answer.json()
    assert story["status"] == "degraded"
    assert story["models"]["good"]["ready"]
    bad = story["models"]["bad"]
    assert not bad["ready"]
    assert bad["reason"] == "bad was told to fail at loading"
    assert set(bad["problems"]) == {"stub0", "stub1"}
    [picture] = server.draw(model="good", prompt="a hen")
    assert stub.read_back(picture)["model"] == "good"
    expect_not_ready(server, model="bad")
    assert [row["id"] for row in server.http.get("/v1/models").json()["data"]] == ["good"]
    rows = server.http.get("/v1/models?all=true").json()["data"]
    assert [(row["id"], row["ready"]) for row in rows] == [("good", True), ("bad", False)]
    assert server.http.get("/v1/models/bad").json()["ready"] is False
    assert server.event("worker_lost") == 0


def test_the_gateway_answers_soon_and_stays_light(
    serve: Serve, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve("--device", "stub:1", ready=False)
    assert server.http.get("/livez").status_code == 200
    seconds = time.monotonic() - server.started
    server.wait_ready().draw(prompt="a hen", n=2)
    gateway = psutil.Process(server.pid)
    # Shared pages are counted by their share where the system tells.
    memory = gateway.memory_full_info()
    megabytes = getattr(memory, "pss", memory.rss) / 1e6
    record_property("livez_seconds", round(seconds, 2))
    record_property("gateway_megabytes", round(megabytes))
    with capsys.disabled():
        print(f"\nfirst /livez {seconds:.2f} s after exec; the gateway holds {megabytes:.0f} MB")  # noqa: T201
    assert seconds < 5.0
    assert megabytes < 150
    mapped = {os.path.basename(region.path) for region in gateway.memory_maps()}
    heavy = ("torch", "numpy", "_imaging", "libcu")
    assert not [name for name in mapped if any(word in name for word in heavy)]
    worker = psutil.Process(server.workers()["stub0"])
    assert not [region.path for region in worker.memory_maps() if "torch" in os.path.basename(region.path)]


def test_a_folder_called_worker_where_one_starts_is_not_run(tmp_path: Path, runtime: Path) -> None:
    for name in ("worker", "gateway", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nraise SystemExit(3)\n")
    command = [str(Path(sys.executable).with_name("replicast")), "serve", "--port", "0", "--device", "stub:1"]
    with (tmp_path / "out").open("wb") as out:
        started = subprocess.Popen(
            [*command, "--data-dir", str(tmp_path / "data")], cwd=tmp_path, env=environment(runtime), stdout=out
        )
    try:
        until(lambda: "\nready http" in (tmp_path / "out").read_text(), "the ready line", START_SECONDS)
    finally:
        started.terminate()
        assert started.wait(STOP_SECONDS) == 0
    assert not (tmp_path / "canary").exists()
