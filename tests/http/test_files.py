"""The pictures behind `url` results: who gets one, with which headers, and that no name leads anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.requests import Request

from gateway.api.files import absolute
from gateway.home import Home
from gateway.results import PATH, Results
from gateway.settings import load
from shared.cards import ImageFormat
from tests.http.conftest import Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Longer than one piece, so that it is sent in several.
PICTURES: dict[ImageFormat, bytes] = {
    "png": b"\x89PNG\r\n\x1a\n" + b"p" * 700_000,
    "jpeg": b"\xff\xd8\xff" + b"j" * 99,
    # Not even a script in it makes it anything but what it is called.
    "webp": b"<html><script>alert(1)</script>",
}


async def save(results: Results, form: ImageFormat = "png") -> str:
    with results.reserve(len(PICTURES[form])) as room:
        return await results.save(PICTURES[form], form, room)


def long_ago(gateway: Gateway, seconds: float) -> Results:
    """This gateway's results as they were opened so long ago: what they keep has expired since."""
    home = Home(gateway.state.results.folder.parent)
    return Results(
        home.folder / "results",
        home.secret(),
        keep_seconds=60,
        max_bytes=1 << 30,
        clock=lambda: time.time() - seconds,
    )


async def ask(gateway: Gateway, path: str, heard: Callable[[], None] = lambda: None) -> tuple[int, bytes]:
    """GET this path as it is: a client of HTTP would tidy it up. `heard` is called for each piece of the answer."""
    status, body = 0, b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        nonlocal status, body
        status, body = message.get("status", status), body + message.get("body", b"")
        heard()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(errors="surrogateescape"),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000")],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
    }
    await gateway.asgi(scope, receive, send)  # type: ignore[arg-type]
    return status, body


@pytest.mark.parametrize(
    ("form", "suffix", "kind"),
    [("png", "png", "image/png"), ("jpeg", "jpeg", "image/jpeg"), ("webp", "webp", "image/webp")],
)
async def test_a_picture_comes_as_what_it_is_and_as_nothing_else(
    gateway: Gateway, form: ImageFormat, suffix: str, kind: str
) -> None:
    path = await save(gateway.state.results, form)
    assert path.endswith(f".{suffix}")
    answer = await gateway.http.get(path)
    assert answer.status_code == 200
    assert answer.content == PICTURES[form]
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-length"] == str(len(PICTURES[form]))
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    word, _, name = answer.headers["content-disposition"].partition("; ")
    id_ = path.removeprefix(PATH)[:8]
    assert (word, name) == ("inline", f'filename="image-{id_}.{suffix}"')
    scope, _, age = answer.headers["cache-control"].partition(", ")
    assert scope == "private"
    assert 3590 <= int(age.removeprefix("max-age=")) <= 3600


async def test_head_says_the_same_as_get(gateway: Gateway) -> None:
    path = await save(gateway.state.results)
    got, head = await gateway.http.get(path), await gateway.http.head(path)
    assert head.status_code == 200
    kept = ("content-type", "content-length", "content-disposition", "content-security-policy")
    assert {name: head.headers[name] for name in kept} == {name: got.headers[name] for name in kept}


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-0", "bytes=0-", "bytes=-1", "bytes=5-2", "nonsense", "bytes=" + ",".join(["0-0"] * 20_000)],
    ids=lambda asked: asked[:12],
)
async def test_a_picture_is_sent_whole_whatever_range_is_asked_for(gateway: Gateway, asked: str) -> None:
    path = await save(gateway.state.results)
    answer = await gateway.http.get(path, headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, PICTURES["png"])
    assert "accept-ranges" not in answer.headers


async def test_one_that_expired_is_gone(gateway: Gateway) -> None:
    path = await save(long_ago(gateway, 120))
    answer = await gateway.http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "result_expired")
    # The sweep of this gateway takes it, and it stays gone.
    await gateway.state.results.sweep()
    assert (await gateway.http.get(path)).status_code == 410


async def test_one_that_somebody_removed_is_gone(gateway: Gateway) -> None:
    path = await save(gateway.state.results)
    gateway.state.results.find(path.removeprefix(PATH)).path.unlink()
    assert (await gateway.http.get(path)).status_code == 410


async def test_one_that_is_swept_while_it_is_sent_is_sent_whole(gateway: Gateway) -> None:
    path = await save(gateway.state.results)
    lies = gateway.state.results.find(path.removeprefix(PATH)).path
    assert await ask(gateway, path, heard=lambda: lies.unlink(missing_ok=True)) == (200, PICTURES["png"])


async def test_a_signature_is_needed_and_must_fit(gateway: Gateway) -> None:
    path = await save(gateway.state.results)
    id_, expires, signature, suffix = path.removeprefix(PATH).split(".")
    wrong = [
        f"{id_}.{expires}.{suffix}",
        f"{id_}.{int(expires) + 3600}.{signature}.{suffix}",
        f"{'0' * 32}.{expires}.{signature}.{suffix}",
        f"{id_}.{expires}.{signature}.jpeg",
        f"{id_}.{expires}.{signature[:-1]}{'A' if signature[-1] != 'A' else 'B'}.{suffix}",
        f"{id_}.{expires}.{signature}",
        f"{id_}.1.{signature}.{suffix}",
    ]
    for name in wrong:
        answer = await gateway.http.get(PATH + name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), name
    assert (await gateway.http.get(path)).status_code == 200


_UP = ("..", ".", "%2e%2e", "%2E%2E", ".%2e", "%252e%252e", "..%00", "%c0%ae%c0%ae", "..;", "%ef%bc%8e%ef%bc%8e", "…")
_SLASH = ("/", "%2f", "%2F", "\\", "%5c", "%5C", "%252f", "%c0%af", "%ef%bc%8f", "%e2%88%95", "%u2215", "//")
HOSTILE = [
    *(f"{up}{slash}{up}{slash}secret" for up in _UP for slash in _SLASH),
    *(
        "secret",
        "../secret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "file:%2f%2f%2fetc%2fpasswd",
        "~",
        "~root",
        "*",
        "?",
        "",
    ),
    *("%00", "%00.png", "a%00.png", "%0d%0aset-cookie:%20a=b", "%0a", "%7f", "%80", "%ff", "con", "nul.png", "C:%5c"),
    *("a" * 5000, "." * 4096, "%2e" * 2000, "é" * 1000, "\u202e.png", "\u200b", "%s%n", "${jndi:x}", "{name}", "'--"),
    *(
        "0.0.0.png",
        f"{'0' * 32}.1.{'A' * 43}.png",
        f"{'0' * 32}.{'9' * 12}.{'A' * 43}.png",
        f"{'0' * 32}.9999999999.png",
    ),
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:24].encode("unicode_escape").decode() or "nothing")
async def test_no_name_leads_anywhere_else(gateway: Gateway, name: str) -> None:
    assert len(HOSTILE) >= 60
    data = gateway.state.results.folder.parent
    before = sorted(data.rglob("*"))
    # As a server decodes it, once, and as it would be if somebody decoded it twice.
    for spelled in {name, unquote(name), unquote(unquote(name))}:
        status, body = await ask(gateway, PATH + spelled)
        assert status == 404, body
        assert b'"code":"not_found"' in body
        assert b"root:" not in body
    assert sorted(data.rglob("*")) == before


async def test_the_figures_tell_how_much_is_kept(root: Path) -> None:
    async with running(root / "figures", ready=False, workers=0) as gateway:
        await save(gateway.state.results)
        text = (await gateway.http.get("/metrics")).text
        assert "\nreplicast_results 1.0\n" in text
        assert f"\nreplicast_results_bytes {float(len(PICTURES['png']))}\n" in text


async def test_a_restart_keeps_the_paths(root: Path) -> None:
    async with running(root / "again", ready=False, workers=0) as gateway:
        path = await save(gateway.state.results, "jpeg")
    async with running(root / "again", ready=False, workers=0) as gateway:
        assert (await gateway.http.get(path)).content == PICTURES["jpeg"]


# The address in an answer


def asked(host: bytes | None) -> Request:
    headers = [] if host is None else [(b"host", host)]
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": headers, "scheme": "http", "query_string": b""}
    return Request(scope | {"server": ("127.0.0.1", 8000)})


@pytest.mark.parametrize(
    ("public_url", "host", "address"),
    [
        ("https://pictures.example", b"127.0.0.1", "https://pictures.example/v1/x"),
        ("https://pictures.example/", b"127.0.0.1", "https://pictures.example/v1/x"),
        ("https://example.com/replicast/", b"127.0.0.1", "https://example.com/replicast/v1/x"),
        (None, b"127.0.0.1:8123", "http://127.0.0.1:8123/v1/x"),
        (None, b"[::1]:8000", "http://[::1]:8000/v1/x"),
        (None, b"box.local", "http://box.local/v1/x"),
        (None, None, "http://127.0.0.1:8000/v1/x"),
    ],
)
async def test_an_address_is_below_the_public_url_or_as_the_client_called_us(
    public_url: str | None, host: bytes | None, address: str
) -> None:
    assert absolute(asked(host), load({"public_url": public_url}), "/v1/x") == address
