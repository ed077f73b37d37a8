"""Requests alike that wait are made in one call, on real processes: right for each of them, and quicker for all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server import Serve, until
from worker.backends import stub

pytestmark = pytest.mark.process


def test_a_crowd_is_made_in_few_calls_and_each_gets_its_own(
    serve: Serve, clients: ThreadPoolExecutor, gate: Path
) -> None:
    server = serve("--device", "stub:1", "--model", f"stub?gate={gate}&batch=4&steps=2", max_batch=4)
    first = clients.submit(server.draw, prompt="the first", seed=0)
    until(lambda: server.metric("replicast_jobs") == 1, "it is running")
    crowd = {seed: clients.submit(server.draw, prompt=f"picture {seed}", seed=seed) for seed in range(1, 5)}
    until(lambda: server.metric("replicast_jobs") == 5, "the crowd waits")
    gate.touch()
    for seed, answer in crowd.items():
        [picture] = answer.result(60.0)
        assert stub.read_back(picture)["seed"] == seed
        assert stub.read_back(picture)["prompt"] == f"picture {seed}"
    assert stub.read_back(first.result(60.0)[0])["prompt"] == "the first"
    # One by itself, and four that shared a call.
    assert server.metric("replicast_image_batch_size_sum") == 1 + 4 * 4


def test_one_bad_member_spoils_nobody_elses_picture(serve: Serve, clients: ThreadPoolExecutor, gate: Path) -> None:
    server = serve("--device", "stub:1", "--model", f"stub?gate={gate}&batch=4&steps=2&poison=arsenic", max_batch=4)
    first = clients.submit(server.draw, prompt="the first", seed=0)
    until(lambda: server.metric("replicast_jobs") == 1, "it is running")
    good = [clients.submit(server.draw, prompt="bread", seed=seed) for seed in (1, 2)]
    bad = clients.submit(server.post, prompt="arsenic", seed=3)
    until(lambda: server.metric("replicast_jobs") == 4, "they wait")
    gate.touch()
    assert first.result(60.0)
    for seed, answer in enumerate(good, 1):
        assert stub.read_back(answer.result(60.0)[0])["seed"] == seed
    assert bad.result(60.0).json()["error"]["code"] == "poison"
