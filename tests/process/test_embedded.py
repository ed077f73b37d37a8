"""The embedded model through the whole of the real path: HTTP, gateway, ZeroMQ, two worker processes, Diffusers."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx2
import openai
import pytest
from PIL import Image

from tests import photos, scorer
from tests.server import Serve, Server, ask_and_hold, until

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


def edited(server: Server, task: str, **said: object) -> list[bytes]:
    """The pictures of an edit that must succeed: by instruction, under a mask, or from noise."""
    body = {"model": "shapes", "prompt": "a green square", "images": [{"image_url": _url(GROUND)}], **said}
    body |= {"inpaint": {"mask": {"image_url": _url(MASK)}}, "variation": {"strength": 0.7}}.get(task, {})
    answer = server.http.post("/v1/images/edits", json=body)
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(row["b64_json"]) for row in answer.json()["data"]]


def _url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


# Of a size that the model does not draw.
GROUND, (MASK, OPEN) = photos.png(photos.noise(3, 333, 250)), photos.window(333, 250)
# Long enough to be seen at work.
LONG = 30


@pytest.mark.parametrize("task", ["edit", "inpaint", "variation"])
def test_an_edit_is_the_same_bytes_on_each_replica(server: Server, clients: ThreadPoolExecutor, task: str) -> None:
    asked = [clients.submit(edited, server, task, seed=5, steps=LONG) for _ in range(2)]
    until(lambda: list(server.jobs().values()) == [1, 1], "each worker has one of them in hand")
    one, two = (answer.result(60.0) for answer in asked)
    assert one == two
    assert one != edited(server, task, seed=5, steps=1)


@pytest.mark.parametrize("task", ["generate", "edit", "inpaint"])
def test_several_pictures_are_those_of_their_seeds(server: Server, task: str) -> None:
    def drawn(**said: object) -> list[bytes]:
        if task == "generate":
            return server.draw(model="shapes", prompt=PROMPT, **said)
        return edited(server, task, **said)

    assert drawn(n=2, seed=7) == [*drawn(seed=7), *drawn(seed=8)]


def test_outside_of_a_mask_nothing_changes(server: Server) -> None:
    [picture] = edited(server, "inpaint", seed=1)
    before, after = photos.rgb(GROUND), photos.rgb(picture)
    assert after.shape == before.shape == (250, 333, 3)
    assert (after[~OPEN] == before[~OPEN]).all()
    assert (after[OPEN] != before[OPEN]).any()


def test_an_edit_under_a_mask_survives_its_worker(server: Server, clients: ThreadPoolExecutor) -> None:
    before = edited(server, "inpaint", seed=5, steps=LONG)
    restarts = server.metric("replicast_worker_restarts_total")
    asked = clients.submit(edited, server, "inpaint", seed=5, steps=LONG)
    name = until(
        lambda: next((name for name, jobs in server.jobs().items() if jobs), None), "it is in a worker's hands"
    )
    os.kill(server.workers()[name], signal.SIGKILL)
    assert asked.result(60.0) == before
    assert server.event("job_requeued") >= 1
    until(lambda: server.metric("replicast_worker_restarts_total") > restarts and server.whole(), "it is back", 90.0)


def test_who_leaves_makes_room_for_who_stays(server: Server) -> None:
    """That it takes no more than a step is counted in tests/unit/test_leaving.py."""
    pictures = server.metric("replicast_images_total")
    with closing(ask_and_hold(server, model="shapes", prompt=PROMPT, steps=LONG, n=10)):
        until(lambda: server.metric("replicast_jobs") == 10, "it is taken")
    until(lambda: server.metric("replicast_jobs") == 0, "nobody waits for it")
    server.draw(model="shapes", prompt=PROMPT, steps=1)
    until(lambda: set(server.jobs().values()) == {0}, "the replicas are free")
    assert server.metric("replicast_images_total") == pictures + 1


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
