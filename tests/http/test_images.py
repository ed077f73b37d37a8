"""POST /v1/images/generations: what a request means to a worker, and what its answer holds."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from shared.messages import Parameters, Problem, Run
from tests.http.conftest import Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

GENERATE = "/v1/images/generations"
# All that OpenAI's reference lists for this route, and what clients add to it.
OPENAI = {
    "model": "first",
    "n": 1,
    "size": "256x256",
    "quality": "high",
    "style": "vivid",
    "response_format": "b64_json",
    "output_format": "png",
    "output_compression": 100,
    "background": "auto",
    "moderation": "auto",
    "complexity": "low",
    "stream": False,
    "partial_images": 0,
    "user": "u1",
    "safety_identifier": "s1",
}


@pytest.fixture(autouse=True)
def _forget(gateway: Gateway) -> None:
    gateway.script.runs.clear()


async def drawn(gateway: Gateway, **body: Any) -> tuple[dict[str, Any], list[Run]]:
    """The answer to a request that must succeed, and what the workers were told, in the order of the seeds."""
    answer = await gateway.post(prompt="a cat", **body)
    assert answer.status_code == 200, answer.text
    # A run that was handed ahead may have been taken back for an idle worker: then it was told twice.
    runs = {run.job: run for run in gateway.script.runs}
    return answer.json(), sorted(runs.values(), key=lambda run: run.seeds)


async def test_a_prompt_alone_is_drawn_as_the_first_model_likes_it(gateway: Gateway) -> None:
    body, [run] = await drawn(gateway)
    assert run.model == "first"
    assert run.parameters == Parameters(
        prompt="a cat", width=256, height=256, steps=4, guidance=3.5, write_parameters=True
    )
    assert body.keys() == {"created", "background", "data", "output_format", "size", "usage"}
    assert isinstance(body["created"], int)
    assert (body["background"], body["output_format"], body["size"]) == ("opaque", "png", "256x256")
    [row] = body["data"]
    assert row.keys() == {"b64_json", "seed"}
    assert base64.b64decode(row["b64_json"], validate=True).startswith(b"\x89PNG")
    assert (row["seed"],) == run.seeds


async def test_null_means_that_nothing_was_said(gateway: Gateway) -> None:
    ours = ("seed", "steps", "guidance", "negative_prompt", "width", "height")
    body, [run] = await drawn(gateway, **dict.fromkeys((*OPENAI, *ours)))
    assert run.parameters == Parameters(
        prompt="a cat", width=256, height=256, steps=4, guidance=3.5, write_parameters=True
    )
    assert len(body["data"]) == 1


@pytest.mark.parametrize("field", OPENAI)
async def test_each_field_of_openai_is_taken(gateway: Gateway, field: str) -> None:
    for value in (OPENAI[field], None):
        body, _ = await drawn(gateway, **{field: value})
        assert body["data"]


async def test_every_parameter_reaches_the_worker(gateway: Gateway) -> None:
    asked = {"seed": 2**63 - 1, "steps": 7, "guidance": 2, "negative_prompt": "dogs", "size": "512x256"}
    form = {"output_format": "webp", "output_compression": 55}
    body, [run] = await drawn(gateway, **OPENAI | asked | form)
    assert run.seeds == (2**63 - 1,)
    assert run.parameters == Parameters(
        prompt="a cat",
        negative_prompt="dogs",
        width=512,
        height=256,
        steps=7,
        guidance=2.0,
        output_format="webp",
        output_compression=55,
        write_parameters=True,
    )
    assert (body["size"], body["output_format"]) == ("512x256", "webp")
    assert body["data"][0]["seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"num_inference_steps": 9}, {"steps": 9}),
        ({"guidance_scale": 1.5}, {"guidance": 1.5}),
        ({"width": 128, "height": 512}, {"size": "128x512"}),
        ({"width": 128, "height": 512, "size": "128x512"}, {"size": "128x512"}),
        ({"width": 128, "height": 512, "size": "auto"}, {"size": "128x512"}),
        ({"size": "auto"}, {}),
        ({"response_format": "base64"}, {"response_format": "b64_json"}),
        ({"background": "opaque"}, {"background": "auto"}),
        ({"negative_prompt": ""}, {}),
        ({"guidance": 0}, {"guidance": 0.0}),
        ({"user": ""}, {}),
    ],
)
async def test_two_ways_to_say_the_same(gateway: Gateway, written: dict[str, Any], meant: dict[str, Any]) -> None:
    _, [one] = await drawn(gateway, **written)
    gateway.script.runs.clear()
    _, [two] = await drawn(gateway, **meant)
    assert one.parameters == two.parameters


@pytest.mark.parametrize("text", ["naïve 猫 🐈", "a\nb\tc", "a\x00b", "\u202eright to left", "x" * 32_000, "'; drop--"])
async def test_a_prompt_arrives_as_it_was_written(gateway: Gateway, text: str) -> None:
    assert (await gateway.post(prompt=text)).status_code == 200
    assert [run.parameters.prompt for run in gateway.script.runs] == [text]


async def test_unknown_keys_are_ignored_and_counted(gateway: Gateway) -> None:
    before = gateway.state.metrics.ignored._value.get()
    _, [run] = await drawn(gateway, sampler_name="x", cfg={"deep": [1, {"er": None}]}, **{"": 1, "__class__": 2})
    assert run.parameters == Parameters(
        prompt="a cat", width=256, height=256, steps=4, guidance=3.5, write_parameters=True
    )
    assert gateway.state.metrics.ignored._value.get() == before + 4


@pytest.mark.parametrize(
    "label", ["application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain", ""]
)
async def test_json_is_taken_as_json_whatever_its_label(gateway: Gateway, label: str) -> None:
    """`curl -d` labels it as a form."""
    answer = await gateway.http.post(GENERATE, content=b'{"prompt": "a cat"}', headers={"content-type": label})
    assert answer.status_code == 200


async def test_a_page_may_ask_if_it_says_json(gateway: Gateway) -> None:
    headers = {"origin": "http://127.0.0.1:8000", "content-type": "application/json"}
    answer = await gateway.http.post(GENERATE, content=b'{"prompt": "a cat"}', headers=headers)
    assert answer.status_code == 200


async def test_seeds_count_up_from_the_first(gateway: Gateway) -> None:
    body, runs = await drawn(gateway, n=10, seed=100)
    assert [row["seed"] for row in body["data"]] == list(range(100, 110))
    # Each picture is a job of its own, so that they spread.
    assert [run.seeds for run in runs] == [(seed,) for seed in range(100, 110)]
    assert len({run.job for run in runs}) == 10
    assert len({run.request_id for run in runs}) == 1


async def test_a_seed_that_was_not_given_is_drawn_and_told(gateway: Gateway) -> None:
    one, _ = await drawn(gateway)
    two, _ = await drawn(gateway)
    assert one["data"][0]["seed"] != two["data"][0]["seed"]


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
async def test_the_format_is_the_one_that_was_asked_for(gateway: Gateway, form: str, magic: bytes) -> None:
    body, _ = await drawn(gateway, output_format=form)
    assert body["output_format"] == form
    assert base64.b64decode(body["data"][0]["b64_json"]).startswith(magic)


async def test_the_answer_says_where_the_time_went(gateway: Gateway) -> None:
    answer = await gateway.post(prompt="a cat")
    phases = dict(phase.split(";dur=") for phase in answer.headers["server-timing"].split(", "))
    assert phases.keys() == {"queue", "dispatch", "inference", "encode", "total"}
    assert all(float(ms) >= 0 for ms in phases.values())
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("job_failed", 500, "job_failed"),
        ("invalid_output", 500, "invalid_output"),
        ("out_of_memory", 507, "out_of_memory"),
        ("unsupported_operation", 400, "unsupported_operation"),
        ("of a later version", 500, "job_failed"),
    ],
)
async def test_what_a_worker_cannot_do_is_told(gateway: Gateway, code: str, status: int, told: str) -> None:
    gateway.script.problems["trouble"] = Problem(code=code, message="It went wrong.", param="steps")
    for n in (1, 3):
        answer = await gateway.post(prompt="trouble", n=n)
        assert answer.status_code == status
        error = answer.json()["error"]
        kind = "server_error" if status >= 500 else "invalid_request_error"
        assert error == {"message": "It went wrong.", "type": kind, "param": "steps", "code": told}
        # A client that repeats it by itself would only have it again.
        assert answer.headers.get("x-should-retry") == ("false" if status >= 500 else None)
    assert gateway.state.serving.idle


async def test_more_than_the_queue_holds_is_refused_whole(root: Path) -> None:
    async with running(root / "small", workers=1, max_queue=2) as gateway:
        gateway.script.go.clear()
        # One is drawn, one handed ahead, two wait: the fifth of these is one too many, and none of them stays.
        refused = await gateway.post(prompt="a cat", n=5)
        assert refused.status_code == 429, refused.text
        error = refused.json()["error"]
        assert (error["code"], error["type"], error["param"]) == ("queue_full", "rate_limit_error", None)
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert gateway.state.serving.idle
        # The two that had been handed out keep their places until the worker has let them go.
        while (await gateway.http.get("/readyz")).json()["workers"]["w0"]["jobs"]:
            await asyncio.sleep(0.005)
        assert len(gateway.script.cancelled) == 2
        gateway.script.go.set()
        assert (await gateway.post(prompt="a cat", n=4)).status_code == 200


async def test_a_server_that_is_leaving_says_so(root: Path) -> None:
    async with running(root / "leaving", workers=1) as gateway:
        gateway.state.serving.drain()
        answer = await gateway.post(prompt="a cat")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) > 0
        story = await gateway.http.get("/readyz")
        assert (story.status_code, story.json()["status"]) == (503, "draining")


async def test_a_request_may_bound_its_own_time(gateway: Gateway) -> None:
    gateway.script.go.clear()
    try:
        answer = await gateway.post(prompt="a cat", timeout_seconds=0.01)
    finally:
        gateway.script.go.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "expired")


async def test_a_strict_request_of_known_fields_is_drawn(gateway: Gateway) -> None:
    _, [run] = await drawn(gateway, strict=True, seed=3, loras=None)
    assert run.seeds == (3,)
