"""Answers as streams: which events come, in which order, and what becomes of a client or a worker in between."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.messages import Problem
from tests.http.conftest import Gateway, running
from tests.http.streaming import Event, Exchange, asked
from tests.pictures import hollow

pytestmark = pytest.mark.asyncio(loop_scope="module")

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
PICTURE = "data:image/png;base64," + base64.b64encode(hollow("png", 128, 64)).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lively(root: Path) -> AsyncIterator[Gateway]:
    """A gateway whose streams give a sign of life many times a second."""
    async with running(root / "lively", workers=1, heartbeat_seconds=0.05) as made:
        yield made


@pytest.fixture(autouse=True)
def _forget(gateway: Gateway) -> None:
    gateway.script.runs.clear()
    gateway.script.cancelled.clear()
    gateway.script.halfway = False
    gateway.script.go.set()


def stream(gateway: Gateway, path: str = GENERATE, **said: Any) -> Any:
    return asked(gateway.asgi, path, **{"model": "first", "prompt": "a cat", "stream": True} | said)


async def events(gateway: Gateway, path: str = GENERATE, **said: Any) -> list[Event]:
    """All events of a stream that must begin well."""
    async with stream(gateway, path, **said) as exchange:
        found = await exchange.rest()
        assert exchange.status == 200, exchange.body
        return found


async def idle(gateway: Gateway) -> None:
    """Until no worker has anything in hand."""
    async with asyncio.timeout(20):
        while not gateway.state.serving.idle or any(w.jobs for w in gateway.state.serving.pool.workers.values()):
            await asyncio.sleep(0.005)


def names(found: list[Event]) -> list[str | None]:
    return [event.name for event in found]


def data(event: Event) -> dict[str, Any]:
    assert event.data is not None
    return event.data


# Events


@pytest.mark.parametrize(
    ("path", "said", "name"),
    [
        (GENERATE, {}, "image_generation"),
        (EDIT, {"images": [PICTURE]}, "image_edit"),
        (EDIT, {"images": [PICTURE], "mask": PICTURE}, "image_edit"),
        (EDIT, {"images": [PICTURE], "strength": 0.5}, "image_edit"),
        (VARY, {"image": PICTURE}, "image_edit"),
    ],
)
async def test_previews_then_the_picture(gateway: Gateway, path: str, said: dict[str, Any], name: str) -> None:
    found = await events(gateway, path, partial_images=2, seed=7, size="128x64", output_format="webp", **said)
    assert names(found) == [f"{name}.partial_image"] * 2 + [f"{name}.completed"]
    common = {
        "size": "128x64",
        "quality": "auto",
        "background": "opaque",
        "output_format": "webp",
        "seed": 7,
        "image_index": 0,
    }
    for number, event in enumerate(found):
        told = data(event)
        assert told.pop("type") == event.name
        picture = base64.b64decode(told.pop("b64_json"), validate=True)
        assert picture.startswith(b"RIFF")
        assert isinstance(told.pop("created_at"), int)
        if number < 2:
            assert picture.endswith(b"%d" % number)
            assert told == common | {"partial_image_index": number}
        else:
            assert told.pop("usage").keys() >= {"input_tokens", "output_tokens", "total_tokens"}
            assert told == common


async def test_an_answer_begins_as_a_stream_does(gateway: Gateway) -> None:
    async with stream(gateway) as exchange:
        await exchange.rest()
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert exchange.headers["cache-control"] == "no-store"
    assert exchange.headers["x-accel-buffering"] == "no"
    assert "content-length" not in exchange.headers
    assert exchange.headers["x-request-id"]


@pytest.mark.parametrize("previews", [None, 0, 1, 3])
async def test_as_many_previews_come_as_were_asked_for(gateway: Gateway, previews: int | None) -> None:
    found = await events(gateway, partial_images=previews)
    assert len(found) == (previews or 0) + 1
    assert [run.previews for run in gateway.script.runs] == [previews or 0]


async def test_each_event_is_sent_when_it_happens(gateway: Gateway) -> None:
    gateway.script.halfway = True
    gateway.script.go.clear()
    async with stream(gateway, partial_images=2) as exchange:
        shown = [await exchange.event(), await exchange.event()]
        assert [data(event)["partial_image_index"] for event in shown] == [0, 1]
        assert not exchange.over
        gateway.script.go.set()
        assert names(await exchange.rest()) == ["image_generation.completed"]


async def test_several_pictures_come_one_by_one_each_with_its_own_usage(gateway: Gateway) -> None:
    gateway.script.tokens["a cat"] = (5, 0, 64)
    try:
        found = await events(gateway, n=4, seed=10, partial_images=2)
    finally:
        gateway.script.tokens.clear()
    assert len(found) == 12
    for index in range(4):
        own = [data(event) for event in found if data(event)["image_index"] == index]
        assert [told["type"].rpartition(".")[2] for told in own] == ["partial_image", "partial_image", "completed"]
        assert [told.get("partial_image_index") for told in own] == [0, 1, None]
        assert {told["seed"] for told in own} == {10 + index}
        assert own[-1]["usage"]["total_tokens"] == 69
    assert gateway.state.serving.idle


async def test_a_stream_may_tell_how_to_make_it_again(gateway: Gateway) -> None:
    found = await events(gateway, n=2, seed=3, return_parameters=True)
    assert sorted(data(event)["replicast"]["seed"] for event in found) == [3, 4]
    assert "replicast" not in data((await events(gateway))[0])


async def test_pictures_of_a_stream_are_counted_too(gateway: Gateway) -> None:
    def drawn() -> float:
        samples = (sample for metric in gateway.state.metrics.registry.collect() for sample in metric.samples)
        return sum(sample.value for sample in samples if sample.name == "replicast_images_total")

    before = drawn()
    await events(gateway, n=3, partial_images=1)
    assert drawn() == before + 3


# Signs of life


async def test_a_sign_of_life_is_a_comment(lively: Gateway) -> None:
    lively.script.go.clear()
    try:
        async with stream(lively) as exchange:
            first = [await exchange.event() for _ in range(3)]
            lively.script.go.set()
            rest = await exchange.rest()
    finally:
        lively.script.go.set()
    assert {event.text for event in first} == {": still at work"}
    assert [event.name for event in rest if event.name] == ["image_generation.completed"]
    assert exchange.status == 200


async def test_what_fails_after_a_sign_of_life_is_an_event(lively: Gateway) -> None:
    lively.script.problems["bad luck"] = Problem(code="out_of_memory", message="It is too large.")
    lively.script.go.clear()
    try:
        async with stream(lively, prompt="bad luck") as exchange:
            await exchange.event()
            lively.script.go.set()
            rest = [event for event in await exchange.rest() if event.name]
    finally:
        lively.script.go.set()
    [error] = rest
    assert (error.name, data(error)["error"]["code"]) == ("error", "out_of_memory")


# What goes wrong


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ({"n": 11}, 400, "invalid_value"),
        ({"partial_images": 4}, 400, "invalid_value"),
        ({"model": "nonsense"}, 404, "model_not_found"),
        ({"model": "third"}, 503, "not_ready"),
        ({"size": "100x100"}, 400, "unsupported_size"),
        ({"prompt": "trouble"}, 500, "job_failed"),
        ({"prompt": "trouble", "n": 3}, 500, "job_failed"),
        ({"timeout_seconds": 0.01, "prompt": "held"}, 504, "expired"),
    ],
)
async def test_what_fails_before_the_first_event_is_a_plain_status(
    gateway: Gateway, said: dict[str, Any], status: int, code: str
) -> None:
    gateway.script.problems["trouble"] = Problem(code="job_failed", message="It went wrong.")
    if said.get("prompt") == "held":
        gateway.script.go.clear()
    async with stream(gateway, **said) as exchange:
        await exchange.wait(lambda: exchange.over)
    gateway.script.go.set()
    assert exchange.status == status, exchange.body
    assert exchange.headers["content-type"] == "application/json"
    assert f'"code":"{code}"'.encode() in exchange.body
    assert b"event:" not in exchange.body
    await idle(gateway)


async def test_what_fails_after_the_first_event_is_the_last_one(gateway: Gateway) -> None:
    gateway.script.problems["trouble"] = Problem(code="job_failed", message="It went wrong.", param="steps")
    found = await events(gateway, prompt="trouble", partial_images=2)
    assert names(found) == ["image_generation.partial_image"] * 2 + ["error"]
    assert data(found[-1]) == {
        "error": {"message": "It went wrong.", "type": "server_error", "param": "steps", "code": "job_failed"}
    }
    await idle(gateway)


async def test_one_failure_ends_all_of_a_stream(gateway: Gateway) -> None:
    """The others are stopped, and nothing of them is told any more."""
    gateway.script.problems["trouble"] = Problem(code="job_failed", message="It went wrong.")
    found = await events(gateway, prompt="trouble", n=5, partial_images=1)
    assert names(found).count("error") == 1
    assert found[-1].name == "error"
    await idle(gateway)
    assert gateway.state.serving._answers == gateway.state.serving._shown == {}


# Who leaves


async def test_who_leaves_in_mid_stream_stops_the_work(gateway: Gateway) -> None:
    gateway.script.halfway = True
    gateway.script.go.clear()
    async with stream(gateway, partial_images=1, n=2) as exchange:
        await exchange.event()
        assert not gateway.script.cancelled
    await idle(gateway)
    assert len(gateway.script.cancelled) == 2
    assert gateway.state.serving._answers == gateway.state.serving._shown == {}


async def test_who_leaves_before_the_first_event_stops_the_work(gateway: Gateway) -> None:
    gateway.script.go.clear()
    async with stream(gateway) as exchange:
        async with asyncio.timeout(20):
            while not gateway.script.runs:
                await asyncio.sleep(0.005)
    await idle(gateway)
    assert len(gateway.script.cancelled) == 1
    assert exchange.status in (0, 499)


async def test_who_leaves_while_it_is_written_to_stops_the_work(gateway: Gateway) -> None:
    """Between two events nobody listens to the client: what it does then is seen all the same."""
    gateway.script.halfway = True
    gateway.script.go.clear()
    async with stream(gateway, partial_images=3) as exchange:
        await exchange.event()
        exchange.left.set()
        await exchange.wait(lambda: exchange.over)
    await idle(gateway)
    assert len(gateway.script.cancelled) == 1


# A worker that dies


async def lose(gateway: Gateway, exchange: Exchange) -> None:
    """End the process of the worker that draws, and wait until another has begun."""
    pool = gateway.state.serving.pool
    [name] = [name for name, worker in pool.workers.items() if worker.jobs]
    gateway.state.serving.supervisor.kill(name, "silent")
    async with asyncio.timeout(20):
        while {run.attempt for run in gateway.script.runs} != {1, 2}:
            await asyncio.sleep(0.005)


async def test_a_stream_goes_on_when_its_worker_dies_and_repeats_nothing(root: Path) -> None:
    async with running(root / "dying", workers=2) as gateway:
        gateway.script.halfway = True
        gateway.script.go.clear()
        async with stream(gateway, partial_images=2, seed=5) as exchange:
            shown = [await exchange.event(), await exchange.event()]
            await lose(gateway, exchange)
            gateway.script.go.set()
            rest = await exchange.rest()
        assert [data(event)["partial_image_index"] for event in shown] == [0, 1]
        assert names(rest) == ["image_generation.completed"]
        assert data(rest[0])["seed"] == 5


async def test_what_the_lost_worker_had_not_shown_is_shown_by_the_next(root: Path) -> None:
    async with running(root / "dying-soon", workers=2) as gateway:
        gateway.script.go.clear()
        async with stream(gateway, partial_images=2) as exchange:
            async with asyncio.timeout(20):
                while not gateway.script.runs:
                    await asyncio.sleep(0.005)
            await lose(gateway, exchange)
            gateway.script.go.set()
            found = await exchange.rest()
        assert [data(event).get("partial_image_index") for event in found] == [0, 1, None]
