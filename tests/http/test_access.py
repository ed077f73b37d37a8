"""Who may use which route: the golden matrix of routes, methods and keys, and that no route is without a role."""

from __future__ import annotations

import base64
import difflib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from gateway.api import access
from gateway.auth import TRIES_PER_MINUTE
from gateway.keys import KeyFile, Role
from shared.errors import Internal
from tests.http.conftest import Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = Path(__file__).parent / "golden" / "access.txt"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
GENERATE = "/v1/images/generations"


@pytest.fixture(scope="module")
def keys(root: Path) -> dict[str, str]:
    """A secret of each role; filled in when the gateway runs, as an operator would."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(root: Path, keys: dict[str, str]) -> AsyncIterator[Gateway]:
    async with running(root / "keyed") as made:
        keys |= {role.value: KeyFile(root / "keyed").create(role)[1] for role in Role}
        yield made


def shown(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


# The matrix


async def test_every_route_lets_in_whom_the_golden_file_says(gateway: Gateway, keys: dict[str, str]) -> None:
    """Run with WRITE_GOLDEN=1 it writes the file instead, for a reader to judge in the diff."""
    who = {"no key": {}, "wrong key": shown("rc_wrong"), **{role: shown(secret) for role, secret in keys.items()}}
    names = list(who)
    rows = [f"{'':<8}{'':<28}{''.join(f'{name:<11}' for name in names)}".rstrip()]
    for path in paths(gateway):
        for method in METHODS:
            # From addresses of their own: a wrong key must not run out of tries.
            codes = [await status(gateway, f"{path} {method}", method, path, headers) for headers in who.values()]
            rows.append(f"{method:<8}{path:<28}{''.join(f'{code:<11}' for code in codes)}".rstrip())
    found = "\n".join(rows) + "\n"
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(found)
    kept = GOLDEN.read_text()
    assert found == kept, "".join(
        difflib.unified_diff(kept.splitlines(True), found.splitlines(True), "golden", "found")
    )


def paths(gateway: Gateway) -> list[str]:
    """Every path there is, with a model's id where one is asked for, and one that there is not."""
    app: FastAPI = gateway.asgi._app._app  # type: ignore[attr-defined]
    found = {str(context.path) for context in iter_route_contexts(app.routes)}
    return [*sorted(path.replace("{model:path}", "first") for path in found), "/nowhere"]


async def status(gateway: Gateway, address: str, method: str, path: str, headers: dict[str, str]) -> int:
    transport = httpx2.ASGITransport(app=gateway.asgi, client=(address, 1))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
        return (await http.request(method, path, headers=headers)).status_code


# No route without a role


def expect_refused(app: FastAPI) -> None:
    with pytest.raises(Internal, match="has no role"):
        access.expect_roles(app)


async def test_an_app_with_a_way_in_that_no_role_guards_does_not_start(tmp_path: Path) -> None:
    def bare() -> FastAPI:
        return FastAPI(openapi_url=None)

    async def route() -> None: ...

    plain, nested, outer = APIRouter(), APIRouter(), access.router(access.PUBLIC)
    plain.add_api_route("/plain", route)
    nested.include_router(plain, prefix="/deep")

    app = bare()
    app.include_router(access.router(Role.INFERENCE))
    access.expect_roles(app)
    app.include_router(nested)
    expect_refused(app)

    app = bare()
    app.add_api_route("/direct", route)
    expect_refused(app)

    app = bare()
    app.mount("/mounted", FastAPI())
    expect_refused(app)

    app = bare()
    outer.mount("/mounted", FastAPI())
    app.include_router(outer)
    expect_refused(app)

    app = bare()
    app.add_api_websocket_route("/socket", route)
    expect_refused(app)

    app = bare()
    app.frontend("/", directory=tmp_path)
    expect_refused(app)

    # FastAPI's own schema and pages.
    expect_refused(FastAPI())


# What a refusal looks like


async def test_a_missing_a_wrong_and_a_revoked_key_are_refused_alike(gateway: Gateway, root: Path) -> None:
    key, secret = KeyFile(root / "keyed").create(Role.ADMIN)
    KeyFile(root / "keyed").revoke(key.id)
    headers: list[dict[str, str]] = [{}, shown("rc_wrong"), shown(secret), {"authorization": "Basic eDp5"}]
    for each in headers:
        answer = await gateway.http.post(GENERATE, content=b"{", headers=each)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        error = answer.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
        assert secret not in answer.text
    assert not gateway.script.runs


@pytest.mark.parametrize("value", [b"Bearer \xc3\xa9", b"Bearer \xe9", "Bearer 🔑".encode(), b"Bearer \xff", b"\xe9"])
async def test_a_key_that_is_no_ascii_is_wrong_and_no_mistake_of_ours(gateway: Gateway, value: bytes) -> None:
    assert (await gateway.http.get("/v1/models", headers={b"authorization": value})).status_code == 401


async def test_a_key_of_another_role_is_told_which_it_takes(gateway: Gateway, keys: dict[str, str]) -> None:
    answer = await gateway.http.get("/metrics", headers=shown(keys["inference"]))
    assert answer.status_code == 403
    assert "www-authenticate" not in answer.headers
    assert answer.json()["error"]["code"] == "insufficient_role"
    assert "'metrics'" in answer.json()["error"]["message"]


async def test_nothing_of_a_body_is_read_before_the_key(gateway: Gateway, keys: dict[str, str]) -> None:
    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b"{}"

    for headers, expected in ((shown(keys["metrics"]), 403), ({}, 401), (shown(keys["inference"]), 400)):
        read = False
        answer = await gateway.http.post(GENERATE, content=body(), headers=headers)
        assert answer.status_code == expected
        assert read is (expected == 400)


async def test_basic_is_taken_wherever_bearer_is(gateway: Gateway, keys: dict[str, str]) -> None:
    for words in (f"user:{keys['inference']}", f"{keys['inference']}:"):
        header = {"authorization": "Basic " + base64.b64encode(words.encode()).decode()}
        assert (await gateway.http.get("/v1/models", headers=header)).status_code == 200


@pytest.mark.parametrize("name", ["api_key", "key", "token", "access_token", "API-KEY", "apikey"])
async def test_a_key_in_an_address_is_refused(gateway: Gateway, keys: dict[str, str], name: str) -> None:
    for path in ("/v1/models", "/livez", "/nowhere"):
        answer = await gateway.http.get(f"{path}?all=true&{name}={keys['inference']}", headers=shown(keys["inference"]))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name
        assert keys["inference"] not in answer.text
    assert (await gateway.http.get("/livez?keys=1&monkey=2&q=token&tokens")).status_code == 200


async def test_who_guesses_is_told_to_wait(gateway: Gateway) -> None:
    codes = [
        await status(gateway, "198.51.100.7", "GET", "/v1/models", shown(f"rc_guess{number}"))
        for number in range(TRIES_PER_MINUTE + 10)
    ]
    assert codes == [401] * TRIES_PER_MINUTE + [429] * 10
    transport = httpx2.ASGITransport(app=gateway.asgi, client=("198.51.100.7", 1))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
        answer = await http.get("/v1/models", headers=shown("rc_guess"))
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(answer.headers["retry-after"]) <= 60
        # To say nothing is no guess.
        assert (await http.get("/v1/models")).status_code == 401


async def test_options_says_what_a_path_takes_and_needs_no_key(gateway: Gateway) -> None:
    answer = await gateway.http.options(GENERATE)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == "OPTIONS, POST"
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await gateway.http.options("/v1/models/a/b")).headers["allow"] == "GET, HEAD, OPTIONS"
    assert (await gateway.http.options("/v1/nowhere")).status_code == 404


async def test_two_routes_of_one_path_have_a_role_each_and_are_allowed_together() -> None:
    app = FastAPI(openapi_url=None)
    read, change = access.router(access.PUBLIC), access.router(access.PUBLIC)

    @read.get("/thing")
    async def get() -> None: ...

    @change.delete("/thing")
    async def delete() -> None: ...

    app.include_router(read)
    app.include_router(change)
    transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.delete("/thing")).status_code == 200
        for answer in (await http.options("/thing"), await http.put("/thing")):
            assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"


# Limits


async def test_a_key_that_asks_too_much_is_told_so_and_others_are_not(gateway: Gateway, root: Path) -> None:
    _, tight = KeyFile(root / "keyed").create(Role.INFERENCE, images_per_minute=2)
    _, other = KeyFile(root / "keyed").create(Role.INFERENCE)
    body = {"prompt": "a cat", "n": 2}
    answers = [await gateway.http.post(GENERATE, json=body, headers=shown(key)) for key in (tight, tight, other)]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    refused = answers[1]
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 60
    never = await gateway.http.post(GENERATE, json=body | {"n": 3}, headers=shown(tight))
    assert never.status_code == 429
    assert "retry-after" not in never.headers
    assert never.headers["x-should-retry"] == "false"
    assert (await gateway.http.get("/v1/models", headers=shown(tight))).status_code == 200


async def test_who_has_no_key_is_limited_by_address(root: Path) -> None:
    async with running(root / "open", key_images_per_minute=3) as gateway:
        assert (await gateway.post(prompt="a cat", n=3)).status_code == 200
        assert (await gateway.post(prompt="a cat")).status_code == 429
        code = await status(gateway, "198.51.100.8", "POST", GENERATE, {})
        # Its body is missing: it got that far.
        assert code == 400


async def test_with_allow_anonymous_no_key_is_inference(root: Path) -> None:
    async with running(root / "both", allow_anonymous=True) as gateway:
        KeyFile(root / "both").create(Role.ADMIN)
        assert (await gateway.http.get("/v1/models")).status_code == 200
        assert (await gateway.http.get("/metrics")).status_code == 401
        assert (await gateway.http.get("/v1/models", headers=shown("none"))).status_code == 401
