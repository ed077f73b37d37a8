"""The published description is whole: every status that a route can give, every field of an answer, words for each."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from pydantic import BaseModel

from gateway.api import shapes
from gateway.api.errors import STATUS
from shared.messages import Problem
from tests.http.conftest import Gateway, running
from tests.http.test_forms import ONE, file, form, text
from tests.http.test_references import url

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGES = ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations")
# A method that a route does not have and a client that is gone are of no route; only a kept picture can expire; a
# picture's LoRAs are a list of objects, and no lists side by side.
ELSEWHERE = {405, 410, 422, 499}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def schema(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = (await gateway.http.get("/openapi.json")).json()
    return found


def operations(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method} {path}": each for path, item in schema["paths"].items() for method, each in item.items()}


async def test_a_route_that_makes_pictures_may_give_every_status_there_is(schema: dict[str, Any]) -> None:
    statuses = {str(status) for status in {*STATUS.values()} - ELSEWHERE} | {"200"}
    for path in IMAGES:
        documented = schema["paths"][path]["post"]["responses"]
        assert statuses <= documented.keys()
        for kind, status in STATUS.items():
            told = f"`{kind.code}`" in documented.get(str(status), {"description": ""})["description"]
            inner = kind.code in ("invalid_configuration", "wire_error", "load_failed", "lora_failed")
            assert told == (status not in ELSEWHERE and not inner), kind


def checked(schema: dict[str, Any], answer: httpx2.Response) -> int:
    """The status of an answer, which is documented for its route with its type and its headers."""
    path, method = answer.request.url.path, answer.request.method.lower()
    route = re.sub(r"(?<=/v1/models/).+", "{model}", path)
    documented = schema["paths"][route][method]["responses"]
    assert str(answer.status_code) in documented, answer.text
    told = documented[str(answer.status_code)]
    assert answer.headers["content-type"].partition(";")[0] in told["content"]
    assert {"x-request-id", "openai-processing-ms"} <= told["headers"].keys()
    if "retry-after" in answer.headers:
        assert "retry-after" in told["headers"]
    return answer.status_code


@pytest.mark.parametrize("path", IMAGES)
async def test_what_a_route_that_makes_pictures_gives_is_documented(
    gateway: Gateway, schema: dict[str, Any], path: str
) -> None:
    body: dict[str, Any] = {"prompt": "a cat", "images": [url(ONE)], "response_format": "b64_json"}
    if path == IMAGES[0]:
        del body["images"]
    codes = ("out_of_memory", "job_failed", "replica_failed")
    gateway.script.problems |= {code: Problem(code=code, message="It went wrong.") for code in codes}

    async def status(**changed: Any) -> int:
        return checked(schema, await gateway.http.post(path, json={**body, **changed}))

    assert [await status(), await status(stream=True), await status(n=0)] == [200, 200, 400]
    assert [await status(model="nonsense"), await status(model="third")] == [404, 503]
    assert [await status(prompt=code) for code in codes] == [507, 500, 502]
    gateway.script.go.clear()
    try:
        assert await status(timeout_seconds=0.01) == 504
    finally:
        gateway.script.go.set()
    label = {"content-type": "text/plain", "origin": "http://127.0.0.1:8000"}
    assert checked(schema, await gateway.http.post(path, content=b"{}", headers=label)) == 415
    length = {"content-length": str(10**10)}
    assert checked(schema, await gateway.http.post(path, content=b"", headers=length)) == 413


async def test_what_the_other_routes_give_is_documented(gateway: Gateway, schema: dict[str, Any], root: Path) -> None:
    for path in ("/livez", "/healthz", "/health", "/readyz", "/metrics", "/v1/models", "/v1/models/org/second"):
        assert checked(schema, await gateway.http.get(path)) == 200
    assert checked(schema, await gateway.http.get("/v1/models/nonsense")) == 404
    async with running(root / "alone", ready=False, workers=0) as alone:
        story = await alone.http.get("/readyz")
        assert checked(schema, story) == 503
        whole(shapes.Readiness, story.json())


async def test_a_full_queue_is_documented(schema: dict[str, Any], root: Path) -> None:
    async with running(root / "small", workers=1, max_queue=1) as gateway:
        gateway.script.go.clear()
        answers = await asyncio.gather(*(gateway.post(prompt="a cat", n=9) for _ in range(2)))
        assert [checked(schema, answer) for answer in answers] == [429, 429]


# Answers hold what is written and nothing else


def whole(shape: type[BaseModel], body: Any) -> None:
    """`body` is of this shape, and has no field that the shape has not."""
    assert shape.model_validate(body, strict=True).model_dump(exclude_unset=True) == body


async def test_answers_have_the_fields_that_are_published(gateway: Gateway) -> None:
    said = {"prompt": "a cat", "return_parameters": True, "safety_identifier": "s"}
    whole(shapes.Images, (await gateway.post(**said, n=2)).json())
    whole(shapes.Images, (await gateway.post(prompt="a cat", output_format="webp")).json())
    edited = await gateway.http.post(IMAGES[1], json={**said, "images": [url(ONE)], "strength": 0.5})
    assert edited.json()["replicast"]["strength"] == 0.5
    whole(shapes.Images, edited.json())
    whole(shapes.Error, (await gateway.post()).json())
    whole(shapes.Models, (await gateway.http.get("/v1/models?all=true")).json())
    whole(shapes.Model, (await gateway.http.get("/v1/models/third")).json())
    whole(shapes.Alive, (await gateway.http.get("/livez")).json())
    whole(shapes.Readiness, (await gateway.http.get("/readyz")).json())


async def test_events_have_the_fields_that_are_published(gateway: Gateway) -> None:
    gateway.script.problems["a dog"] = Problem(code="job_failed", message="It went wrong.")
    more = {"stream": True, "partial_images": 2, "n": 2, "return_parameters": True}
    seen = set()
    for prompt in ("a cat", "a dog"):
        for event in (await gateway.post(prompt=prompt, **more)).text.split("\n\n")[:-1]:
            name, data = (line.partition(": ")[2] for line in event.splitlines())
            body = json.loads(data)
            seen.add(name)
            assert body.get("type", "error") == name
            last = {"image_generation.partial_image": shapes.Partial, "image_generation.completed": shapes.Completed}
            whole(last.get(name, shapes.Error), body)
    assert seen == {"image_generation.partial_image", "image_generation.completed", "error"}


# Models


@pytest.mark.parametrize("model", ["first", "org/second"])
async def test_a_model_says_how_it_edits(gateway: Gateway, model: str) -> None:
    """Each bound is the last value that is taken."""
    says = (await gateway.http.get(f"/v1/models/{model}")).json()
    edits = says["edit_parameters"]
    assert bool(edits) == ("edit" in says["capabilities"])
    if not edits:
        return
    assert {*edits} == {*says["generation_parameters"], "image", "mask", "strength"}
    assert edits["size"]["default"] == "auto"

    async def status(pictures: int, *masks: bytes) -> int:
        said = (text("prompt", "a cat"), text("model", model), *(file("image", ONE) for _ in range(pictures)))
        label = {"content-type": "multipart/form-data; boundary=xyzzy"}
        content = form(*said, *(file("mask", mask) for mask in masks))
        return (await gateway.http.post(IMAGES[1], content=content, headers=label)).status_code

    for most, masks in ((edits["image"]["maximum"], ()), (edits["mask"]["maximum_images"], (ONE,))):
        assert [await status(most, *masks), await status(most + 1, *masks)] == [200, 400]


# Words for readers


async def test_every_field_and_route_says_what_it_is(schema: dict[str, Any]) -> None:
    silent = []
    for name, described in schema["components"]["schemas"].items():
        silent += [name] if not described.get("description") else []
        if name.removesuffix("Form") in ("Generation", "Edit", "Variation"):
            fields = described["properties"]
            silent += [f"{name}.{field}" for field, about in fields.items() if not about.get("description")]
    for name, operation in operations(schema).items():
        silent += [name] if not (operation.get("summary") and operation.get("description")) else []
        silent += [f"{name} {s}" for s, told in operation["responses"].items() if len(told["description"]) < 8]
        assert operation["tags"][0] in {tag["name"] for tag in schema["tags"]}
    assert silent == []
    assert len({operation["operationId"] for operation in operations(schema).values()}) == len(operations(schema))


async def test_every_field_that_is_taken_is_published(schema: dict[str, Any]) -> None:
    """With `strict`, so that a field nobody knows would be refused."""
    named = schema["components"]["schemas"]
    taken = {"prompt", "model", "n", "size", "seed", "num_inference_steps", "guidance_scale", "sampler", "stream"}
    for name in ("Generation", "Edit", "Variation", "EditForm", "VariationForm"):
        assert taken <= named[name]["properties"].keys()
    assert named["EditForm"]["required"] == ["prompt", "image"]
    assert named["Edit"]["required"] == ["prompt", "images"]
    assert "null" not in json.dumps(named["EditForm"])
