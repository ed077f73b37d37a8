"""Every route and method, what health, figures, models and the page say, and what OpenAI's own client makes of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest
import pytest_asyncio

from tests.http.conftest import CARDS, Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "NONSENSE")
# Every route, with the status of each method that it has; OPTIONS is 204, and all others are 405.
ROUTES = {
    "/": {"GET": 200},
    "/page.js": {"GET": 200},
    "/page.css": {"GET": 200},
    "/docs": {"GET": 200},
    "/docs/start.js": {"GET": 200},
    "/docs/swagger-ui.css": {"GET": 200},
    "/docs/swagger-ui-bundle.js": {"GET": 200},
    "/health": {"GET": 200},
    "/healthz": {"GET": 200},
    "/livez": {"GET": 200},
    "/readyz": {"GET": 200},
    "/metrics": {"GET": 200},
    "/openapi.json": {"GET": 200},
    "/v1/models": {"GET": 200},
    "/v1/models/first": {"GET": 200},
    "/v1/models/org/second": {"GET": 200},
    "/v1/models/third": {"GET": 200},
    "/v1/images/generations": {"POST": 400},
    "/v1/images/edits": {"POST": 400},
    "/v1/admin/workers": {"GET": 200},
    "/v1/admin/workers/nonsense.png/drain": {"POST": 404},
    "/v1/admin/workers/nonsense.png/restart": {"POST": 404},
    "/v1/admin/scale": {"POST": 400},
    "/v1/admin/loras": {"GET": 200},
    # Ids may be anything, so these are some, too.
    "/v1/admin/loras/inspect": {"POST": 400, "DELETE": 404},
    "/v1/admin/loras/import": {"POST": 400, "DELETE": 404},
    "/v1/admin/loras/imported/nonsense": {"DELETE": 404},
    "/v1/images/variations": {"POST": 400},
    "/v1/images/files/nonsense.png": {"GET": 404},
    "/v1/set_lora": {"POST": 400},
    "/v1/merge_lora_weights": {"POST": 200},
    "/v1/unmerge_lora_weights": {"POST": 200},
    "/v1/unload_lora": {"POST": 400},
    "/v1/list_loras": {"GET": 200},
    "/v1/jobs": {"GET": 200},
    "/v1/jobs/nonsense": {"GET": 404},
}
# Ids that clients write in several ways.
SPELLINGS = ["org/second", "org%2Fsecond", "org%2fsecond"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", METHODS)
async def test_every_route_answers_every_method_as_written_here(gateway: Gateway, path: str, method: str) -> None:
    answer = await gateway.http.request(method, path)
    expected = {"OPTIONS": 204, **ROUTES[path]}.get("GET" if method == "HEAD" else method, 405)
    assert answer.status_code == expected, answer.text
    assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])
    assert answer.headers["openai-processing-ms"].isdecimal()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    if expected in (204, 405):
        heads = {"HEAD"} if "GET" in ROUTES[path] else set()
        assert set(answer.headers["allow"].split(", ")) == {*ROUTES[path], *heads, "OPTIONS"}
    if expected == 405:
        assert answer.headers["content-type"] == "application/json"
    if expected == 405 and method != "HEAD":
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_no_route_is_missing_above(gateway: Gateway) -> None:
    schema = (await gateway.http.get("/openapi.json")).json()
    described = {
        (
            path.replace("{model}", "first")
            .replace("{name}", "nonsense.png")
            .replace("{job}", "nonsense")
            .replace("{id}", "imported/nonsense"),
            method.upper(),
        )
        for path, item in schema["paths"].items()
        for method in item
    }
    assert described <= {(path, method) for path, methods in ROUTES.items() for method in methods}


async def test_the_schema_describes_a_generation(gateway: Gateway) -> None:
    schema = (await gateway.http.get("/openapi.json")).json()
    content = schema["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Generation"}
    fields = schema["components"]["schemas"]["Generation"]["properties"]
    assert {"prompt", "model", "n", "size", "seed", "steps", "guidance", "negative_prompt"} <= fields.keys()
    assert fields["seed"]["anyOf"][0]["maximum"] == 2**63 - 1


# Request ids


@pytest.mark.parametrize("name", ["a", "req-1.2_3", "x" * 128, "550e8400-e29b-41d4-a716-446655440000"])
async def test_a_sane_request_id_is_echoed(gateway: Gateway, name: str) -> None:
    for path in ("/livez", "/nonsense"):
        assert (await gateway.http.get(path, headers={"x-request-id": name})).headers["x-request-id"] == name


@pytest.mark.parametrize(
    "name", [b"", b"x" * 129, b"a b", b"a\tb", b"<script>", b"a;b", b"\xc3\xa9", b"a\r\nset-cookie: b", b"a/b"]
)
async def test_any_other_is_replaced(gateway: Gateway, name: bytes) -> None:
    answer = await gateway.http.get("/livez", headers={b"x-request-id": name})
    assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])
    assert len(answer.headers.get_list("x-request-id")) == 1


async def test_a_request_id_reaches_the_worker(gateway: Gateway) -> None:
    gateway.script.runs.clear()
    body = {"prompt": "a cat"}
    await gateway.http.post("/v1/images/generations", json=body, headers={"x-request-id": "mine"})
    assert [run.request_id for run in gateway.script.runs] == ["mine"]


# Health


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez"])
async def test_alive_is_alive(gateway: Gateway, path: str) -> None:
    assert (await gateway.http.get(path)).json() == {"status": "ok"}


async def test_readiness_tells_of_each_model_and_worker(gateway: Gateway) -> None:
    story = (await gateway.http.get("/readyz")).json()
    ready = {"ready": True, "replicas_ready": 2, "replicas": 2}
    problem = "there is no card of it"
    worker = {"state": "ready", "restarts": 0, "in_step": True, "suspect": False, "jobs": 0}
    assert story == {
        "status": "degraded",
        "models": {
            "first": ready,
            "org/second": ready,
            "third": {
                "ready": False,
                "replicas_ready": 0,
                "replicas": 2,
                "reason": problem,
                "problems": {"w0": problem, "w1": problem},
            },
        },
        "workers": {"w0": worker, "w1": worker},
    }


async def test_without_workers_it_is_alive_and_not_ready(root: Path) -> None:
    async with running(root / "alone", ready=False, workers=0) as gateway:
        assert (await gateway.http.get("/livez")).status_code == 200
        answer = await gateway.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "not_ready"
        assert all(not model["ready"] and model["reason"] for model in answer.json()["models"].values())
        refused = await gateway.post(prompt="a cat")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert (await gateway.http.get("/v1/models")).json() == {"object": "list", "data": []}


async def test_health_is_told_while_every_worker_is_busy(gateway: Gateway) -> None:
    gateway.script.go.clear()
    busy = [asyncio.create_task(gateway.post(prompt="a cat")) for _ in range(50)]
    try:
        while len(gateway.state.serving.pool.jobs) < 50:
            await asyncio.sleep(0)
        for path in ("/livez", "/readyz", "/metrics", "/v1/models"):
            assert (await gateway.http.get(path)).status_code == 200
        jobs = (await gateway.http.get("/readyz")).json()["workers"]
        # One drawn and one handed ahead.
        assert [worker["jobs"] for worker in jobs.values()] == [2, 2]
    finally:
        gateway.script.go.set()
    assert {answer.status_code for answer in await asyncio.gather(*busy)} == {200}


# Models


async def test_models_that_can_serve_are_listed(gateway: Gateway) -> None:
    listed = (await gateway.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [row["id"] for row in listed["data"]] == ["first", "org/second"]
    everything = (await gateway.http.get("/v1/models?all=true")).json()
    assert [(row["id"], row["ready"]) for row in everything["data"]] == [
        ("first", True),
        ("org/second", True),
        ("third", False),
    ]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_model_is_found_by_its_id_however_it_is_written(gateway: Gateway, spelling: str) -> None:
    row = (await gateway.http.get(f"http://127.0.0.1:8000/v1/models/{spelling}")).json()
    assert (row["id"], row["object"], row["owned_by"]) == ("org/second", "model", "replicast")
    assert isinstance(row["created"], int)


async def test_a_model_says_what_it_can_do(gateway: Gateway) -> None:
    first = (await gateway.http.get("/v1/models/first")).json()
    second = (await gateway.http.get("/v1/models/org/second")).json()
    parameters = first["generation_parameters"]
    assert parameters["steps"] == {"type": "integer", "minimum": 1, "maximum": 500, "default": 4}
    assert parameters["guidance"]["maximum"] == 10.0
    assert parameters["size"]["default"] == "256x256"
    assert parameters["size"]["multiple"] == CARDS["first"].sizes.multiple
    sizes = second["generation_parameters"]["size"]
    assert sizes["enum"] == ["auto", "256x256", "512x512"]
    assert (sizes["native"], sizes["enlargement"]) == ("256x256", "nearest")
    assert second["vocabulary"] == ["red", "circle"]
    assert second["generation_parameters"]["negative_prompt"]["supported"] is False


@pytest.mark.parametrize("model", CARDS)
async def test_what_a_model_says_of_itself_holds(gateway: Gateway, model: str) -> None:
    """Each bound is the last value that is taken."""
    parameters = (await gateway.http.get(f"/v1/models/{model}")).json()["generation_parameters"]
    for field in ("steps", "guidance", "n"):
        for bound, beyond in (("minimum", -1), ("maximum", 1)):
            limit = parameters[field][bound]
            taken = await gateway.post(prompt="a cat", model=model, size="256x256", **{field: limit})
            assert taken.status_code == 200, taken.text
            refused = await gateway.post(prompt="a cat", model=model, **{field: limit + beyond})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    for size in parameters["size"].get("enum", ["auto", parameters["size"]["default"]]):
        assert (await gateway.post(prompt="a cat", model=model, size=size)).status_code == 200


# The page


async def test_the_page_comes_with_a_policy_that_lets_nothing_else_in(gateway: Gateway) -> None:
    answer = await gateway.http.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    # The policy would keep these from working: nothing inline, nothing from elsewhere.
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:|https?://", answer.text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", answer.text)
    for path in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
        if not path.startswith("data:"):
            assert (await gateway.http.get(f"/{path}")).status_code == 200


# OpenAI's own client, which here believes no answer that is not exactly as OpenAI describes it


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(app=gateway.asgi)  # type: ignore[arg-type]
    async with openai.AsyncOpenAI(
        base_url="http://127.0.0.1:8000/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
        _strict_response_validation=True,
    ) as client:
        yield client


async def test_openai_generates(client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(
        model="first",
        prompt="a cat",
        n=2,
        size="512x512",
        quality="high",
        output_format="webp",
        output_compression=80,
        background="auto",
        moderation="low",
        style="vivid",
        user="me",
        response_format="b64_json",
        extra_body={"seed": 1, "guidance_scale": 2.5, "nobody_knows": True},
    )
    assert answer.data
    assert len(answer.data) == 2
    assert all(row.b64_json and row.url is None for row in answer.data)
    assert (answer.size, answer.output_format, answer.background) == ("512x512", "webp", "opaque")
    assert answer._request_id


async def test_openai_lists_and_finds_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["first", "org/second"]
    found = await client.models.retrieve("org/second")
    assert (found.id, found.owned_by) == ("org/second", "replicast")


async def test_openai_raises_what_it_should(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.images.generate(model="first", prompt="a cat", n=11)
    assert (bad.value.code, bad.value.param, bad.value.type) == ("invalid_value", "n", "invalid_request_error")
    assert bad.value.request_id
    assert "'n'" in str(bad.value)
    with pytest.raises(openai.NotFoundError) as missing:
        await client.images.generate(model="nonsense", prompt="a cat")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nonsense")
    with pytest.raises(openai.NotFoundError):
        await client.files.list()
    with pytest.raises(openai.InternalServerError) as unready:
        await client.images.generate(model="third", prompt="a cat")
    assert unready.value.code == "not_ready"
