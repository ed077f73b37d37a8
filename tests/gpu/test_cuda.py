"""On a card: one replica per GPU, pinned to it, that draws what is asked and the same again for the same seed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import devices
from tests import scorer
from tests.server import Server

pytestmark = [pytest.mark.gpu, pytest.mark.model]
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as runtime,
        Server(tmp_path_factory.mktemp("server"), Path(runtime), "--device", "cuda") as server,
    ):
        yield server.wait_ready()


def test_one_replica_per_gpu(server: Server) -> None:
    assert set(server.workers()) == {f"gpu{index}" for index, _ in enumerate(devices.visible_gpus())}


def test_a_picture_made_on_a_gpu_is_what_was_asked(server: Server) -> None:
    for seed in range(4):
        score = scorer.score(server.draw(prompt=PROMPT, seed=seed)[0], scorer.parse(PROMPT))
        assert score.colour, score
        assert score.background, score
        assert score.position, score


def test_a_seed_draws_the_same_again(server: Server) -> None:
    assert len({server.draw(prompt=PROMPT, seed=5)[0] for _ in range(4)}) == 1
