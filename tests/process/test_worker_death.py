"""A worker that dies, hangs or is killed by what it draws costs a client time and nothing else."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.server import Serve, Server, until
from worker.backends import stub

PINGS = {"ping_seconds": 0.1, "suspect_after_pings": 5, "gone_after_pings": 20}


@dataclass
class Crowd:
    """Clients that draw one picture after the other, each with a seed and a prompt of its own, until told to stop."""

    server: Server
    count: int
    pictures: dict[tuple[int, str], bytes] = field(default_factory=dict)
    enough: threading.Event = field(default_factory=threading.Event)

    def run(self, client: int) -> None:
        number = 0
        while not self.enough.is_set():
            seed, prompt = client * 1_000_000 + number, f"picture {number} of client {client}"
            [self.pictures[seed, prompt]] = self.server.draw(prompt=prompt, seed=seed)
            number += 1

    def join(self, clients: ThreadPoolExecutor) -> None:
        self._running = [clients.submit(self.run, client) for client in range(self.count)]

    def leave(self) -> None:
        """Stop all clients; raises the first error that one of them has seen."""
        self.enough.set()
        for client in self._running:
            client.result(60.0)

    def more(self, count: int) -> None:
        """Wait until so many more pictures have come."""
        seen = len(self.pictures)
        until(lambda: len(self.pictures) >= seen + count or any(c.done() for c in self._running), "more pictures")

    def expect_right(self) -> None:
        """Each picture was made from the seed and the prompt of its request."""
        for (seed, prompt), picture in self.pictures.items():
            made_from = stub.read_back(picture)
            assert (made_from["seed"], made_from["prompt"]) == (seed, prompt)


def test_a_killed_worker_costs_no_client_its_answer(serve: Serve, clients: ThreadPoolExecutor) -> None:
    server = serve("--device", "stub:2", "--model", "stub?step_seconds=0.05&steps=4", **PINGS)
    crowd = Crowd(server, 8)
    crowd.join(clients)
    crowd.more(8)
    victims = server.workers()
    name = max(server.jobs().items(), key=lambda entry: entry[1])[0]
    os.kill(victims[name], signal.SIGKILL)
    until(lambda: server.readyz()["workers"][name]["restarts"] == 1 and server.whole(), "the worker is back")
    crowd.more(8)
    crowd.leave()
    crowd.expect_right()
    story = server.readyz()["workers"][name]
    assert story["last_error"] == "signal SIGKILL"
    assert server.workers()[name] != victims[name]
    assert server.metric("replicast_worker_restarts_total") == 1
    assert server.event("worker_lost") == 1
    assert server.event("job_requeued") >= 1
    # What was drawn during the trouble is what is drawn in peace.
    for (seed, prompt), picture in list(crowd.pictures.items())[::20]:
        assert server.draw(prompt=prompt, seed=seed) == [picture]


def test_a_picture_interrupted_by_a_kill_is_the_same_picture(
    serve: Serve, clients: ThreadPoolExecutor, gate: Path
) -> None:
    server = serve("--device", "stub:2", "--model", f"stub?gate={gate}&steps=3", **PINGS)
    gate.touch()
    undisturbed = server.draw(prompt="a fox", seed=7)
    gate.unlink()
    answer = clients.submit(server.draw, prompt="a fox", seed=7)
    name = until(lambda: next((name for name, jobs in server.jobs().items() if jobs), None), "the job runs")
    os.kill(server.workers()[name], signal.SIGKILL)
    until(lambda: any(jobs for other, jobs in server.jobs().items() if other != name), "the job runs elsewhere")
    assert not answer.done()
    gate.touch()
    assert answer.result(60.0) == undisturbed
    assert server.event("job_requeued") == 1


def test_a_stopped_worker_is_found_by_its_silence_and_replaced(
    serve: Serve, clients: ThreadPoolExecutor, gate: Path
) -> None:
    server = serve("--device", "stub:2", "--model", f"stub?gate={gate}", **PINGS)
    answer = clients.submit(server.draw, prompt="an owl", seed=1)
    name = until(lambda: next((name for name, jobs in server.jobs().items() if jobs), None), "the job runs")
    pid = server.workers()[name]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: any(jobs for other, jobs in server.jobs().items() if other != name), "the job runs elsewhere")
    gate.touch()
    [picture] = answer.result(60.0)
    assert stub.read_back(picture)["seed"] == 1
    until(server.whole, "the stopped worker is replaced")
    assert server.workers()[name] != pid
    assert server.readyz()["workers"][name]["last_error"] == "silent, signal SIGKILL"
    assert "worker_killed worker=" + name + " reason=silent" in server.log
    assert server.event("worker_lost") == 1
    # The one that was late has changed nothing.
    assert server.metric("replicast_images_total") == 1
    assert server.draw(prompt="an owl", seed=1) == [picture]


def test_a_worker_stopped_for_a_moment_is_kept(serve: Serve) -> None:
    server = serve(
        "--device", "stub:1", "--model", "stub", ping_seconds=0.1, suspect_after_pings=3, gone_after_pings=500
    )
    [(name, pid)] = server.workers().items()
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: server.readyz()["workers"][name]["suspect"], "it is under suspicion")
        assert server.http.get("/readyz").status_code == 503
    finally:
        os.kill(pid, signal.SIGCONT)
    until(server.whole, "it is trusted again")
    server.draw(prompt="a hare")
    assert server.workers() == {name: pid}
    assert server.event("worker_lost") == 0


def test_a_request_that_kills_every_worker_fails_alone(serve: Serve, clients: ThreadPoolExecutor) -> None:
    server = serve(
        "--device",
        "stub:2",
        "--model",
        "stub?poison=hemlock&step_seconds=0.02",
        max_attempts=3,
        restart_limit=50,
        restart_backoff_seconds=0.05,
        **PINGS,
    )
    crowd = Crowd(server, 4)
    crowd.join(clients)
    poisoned = server.post(prompt="a cup of hemlock")
    assert poisoned.status_code == 502, poisoned.text
    error = poisoned.json()["error"]
    assert error["code"] == "poison"
    assert poisoned.headers["x-should-retry"] == "false"
    until(server.whole, "the workers are back")
    crowd.more(4)
    crowd.leave()
    crowd.expect_right()
    assert server.event("job_poison") == 1
    assert server.event("worker_lost") == 3
    assert server.metric("replicast_worker_restarts_total") == 3
    assert re.search(rf"job_poison .*request={poisoned.headers['x-request-id']}", server.log)


def test_a_failure_of_the_picture_is_no_failure_of_the_worker(serve: Serve) -> None:
    server = serve(
        "--device",
        "stub:1",
        *("--model", "well=stub", "--model", "fails=stub?fail_at_step=2", "--model", "fat=stub?oom_at_step=1"),
    )
    workers = server.workers()
    for model, status, code in (("fails", 500, "job_failed"), ("fat", 507, "out_of_memory")):
        answer = server.post(model=model, prompt="a newt")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    server.draw(model="well", prompt="a newt")
    assert server.workers() == workers


@pytest.mark.parametrize("word", ["hemlock", "rubble"], ids=["dies", "is-killed"])
def test_poison_that_kills_at_once_costs_nobody_else_the_service(serve: Serve, word: str) -> None:
    """With the settings as they come: no death is too quick to be counted, and none of these is a crash loop's."""
    server = serve("--device", "stub:2", "--model", "stub?poison=hemlock&garbage=rubble")
    for _ in range(4):
        poisoned = server.post(prompt=f"a cup of {word}")
        assert (poisoned.status_code, poisoned.json()["error"]["code"]) == (502, "poison")
        until(server.whole, "the workers are back")
    server.draw(prompt="a cup of tea")
    assert all(worker["state"] == "ready" for worker in server.readyz()["workers"].values())


def test_a_device_that_hangs_while_its_worker_answers_is_replaced(serve: Serve, clients: ThreadPoolExecutor) -> None:
    server = serve(
        "--device",
        "stub:1",
        *("--model", "well=stub", "--model", "hangs=stub?hang_at_step=2"),
        stuck_seconds=0.1,
        max_attempts=1,
        **PINGS,
    )
    before = server.workers()
    hung = clients.submit(server.post, model="hangs", prompt="a stone")
    answer = hung.result(30.0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "poison")
    until(server.whole, "it is replaced")
    assert server.workers() != before
    server.draw(model="well", prompt="a river")


def test_a_pause_of_the_gateway_is_no_workers_death(serve: Serve, clients: ThreadPoolExecutor) -> None:
    """Ctrl-Z, a frozen machine: what was running is still running afterwards."""
    server = serve("--device", "stub:2", "--model", "stub?steps=100&step_seconds=0.05", **PINGS)
    workers = server.workers()
    drawing = clients.submit(server.draw, prompt="a glacier")
    until(lambda: sum(server.jobs().values()) == 1, "it is running")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        time.sleep(4.0)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    [picture] = drawing.result(30.0)
    assert stub.read_back(picture)["prompt"] == "a glacier"
    assert server.workers() == workers
    # It went on when its worker had introduced itself again: nobody ran it a second time.
    assert server.event("job_requeued") == 0
