"""The embedded model through the whole of the real path: HTTP, gateway, ZeroMQ, two worker processes, Diffusers."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from PIL import Image

from tests import scorer
from tests.server import Serve, Server, until

pytestmark = pytest.mark.model

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def server(serve_for_all: Serve) -> Server:
    """What `make serve` starts on a machine without a GPU: the embedded model on two replicas."""
    return serve_for_all("--device", "cpu")


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.address}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx2.Client(trust_env=False),
        _strict_response_validation=True,
    ) as client:
        yield client


def pictures(answer: openai.types.ImagesResponse) -> list[bytes]:
    assert answer.data
    return [base64.b64decode(row.b64_json or "") for row in answer.data]


@pytest.mark.parametrize("size", ["auto", "512x512"])
def test_two_pictures_of_what_was_asked_for(client: openai.OpenAI, size: str) -> None:
    answer = client.images.generate(model="shapes", prompt=PROMPT, n=2, size=size)  # type: ignore[call-overload]
    one, two = pictures(answer)
    assert one != two
    for picture in (one, two):
        assert scorer.score(picture, scorer.parse(PROMPT)).all, scorer.look(picture)
        with Image.open(io.BytesIO(picture)) as image:
            assert "{}x{}".format(*image.size) == answer.size
    if size != "auto":
        assert answer.size == size


def judged(server: Server, count: int, seed: int) -> dict[str, float]:
    """The shares of held-out prompts that are drawn right, by what the scorer looks at."""
    scores = [
        scorer.score(server.draw(model="shapes", prompt=prompt, seed=number)[0], wanted)
        for number, (prompt, wanted) in enumerate(scorer.held_out_prompts(count, seed=seed))
    ]
    looked_at = ("shape", "colour", "background", "position")
    return {name: sum(getattr(score, name) for score in scores) / count for name in looked_at}


def test_what_it_never_saw_in_training_is_drawn_too(server: Server) -> None:
    shares = judged(server, 20, seed=1)
    assert min(shares.values()) >= 0.9, shares


@pytest.mark.slow
def test_two_hundred_held_out_prompts_pass_the_gate(server: Server) -> None:
    shares = judged(server, 200, seed=2)
    assert shares["shape"] >= 0.9, shares
    assert min(shares["colour"], shares["background"], shares["position"]) >= 0.98, shares


def test_a_png_tells_what_it_was_made_from(server: Server) -> None:
    [picture] = server.draw(model="shapes", prompt="a star, naïve 猫", seed=5, size="64x64")
    with Image.open(io.BytesIO(picture)) as image:
        facts = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    assert (facts["prompt"], facts["seed"], facts["size"], facts["model"]) == ("a star, naïve 猫", 5, "64x64", "shapes")


def test_a_seed_draws_the_same_bytes_on_each_replica_and_after_a_restart(
    server: Server, clients: ThreadPoolExecutor
) -> None:
    row = server.http.get("/v1/models/shapes").json()
    # Long enough to be seen running on both at once.
    steps = min(30, row["generation_parameters"]["steps"]["maximum"])

    def twice() -> list[bytes]:
        answers = [clients.submit(server.draw, model="shapes", prompt=PROMPT, seed=5, steps=steps) for _ in range(2)]
        until(lambda: list(server.jobs().values()) == [1, 1], "each worker has one of them in hand")
        return [picture for answer in answers for picture in answer.result(60.0)]

    before = twice()
    for pid in server.workers().values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: server.metric("replicast_worker_restarts_total") == 2, "both are started again")
    until(server.whole, "both are back", 90.0)
    assert len({*before, *twice()}) == 1


def test_the_model_says_what_it_can_do(server: Server) -> None:
    row = server.http.get("/v1/models/shapes").json()
    assert row["ready"]
    assert "generate" in row["capabilities"]
    assert {"circle", "red"} <= set(row["vocabulary"])
    size = row["generation_parameters"]["size"]
    assert "512x512" in size["enum"]
    assert size["enlargement"] == "nearest"
    refused = server.post(model="shapes", prompt=PROMPT, size="500x500")
    assert refused.status_code == 400
    assert "512x512" in refused.json()["error"]["message"]
