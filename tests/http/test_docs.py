"""/docs: Swagger UI from this server alone. Whether it draws anything is for a real browser, in tests/process."""

from __future__ import annotations

import re

import pytest

from tests.http.conftest import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILES = {
    "/docs": ("text/html; charset=utf-8", b"<!doctype html>"),
    "/docs/start.js": ("text/javascript; charset=utf-8", b"SwaggerUIBundle("),
    "/docs/swagger-ui.css": ("text/css; charset=utf-8", b".swagger-ui"),
    "/docs/swagger-ui-bundle.js": ("text/javascript; charset=utf-8", b"SwaggerUIBundle"),
}


@pytest.mark.parametrize("path", FILES)
async def test_each_file_comes_as_what_it_is_with_a_policy_that_lets_nothing_else_in(
    gateway: Gateway, path: str
) -> None:
    answer = await gateway.http.get(path)
    kind, holds = FILES[path]
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert holds in answer.content
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]


async def test_the_page_names_no_other_origin_and_each_file_it_names_is_there(gateway: Gateway) -> None:
    page, start, css = [(await gateway.http.get(path)).text for path in list(FILES)[:3]]
    for text in (page, start, css):
        assert not re.search(r"(?:src|href|url)\s*[=(:]\s*[\"']?(?:https?:)?//", text)
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:", page)
    assert not re.search(r"<script(?![^>]*\ssrc=)", page)
    named = {name for name in re.findall(r'(?:src|href)="([^"]+)"', page) if not name.startswith("data:")}
    assert {f"/{name}" for name in named} == set(FILES) - {"/docs"}
    url = re.findall(r'url: "([^"]+)"', start)
    assert (await gateway.http.get(f"/{url[0]}")).json()["openapi"].startswith("3.")


async def test_the_interface_does_not_describe_its_own_description(gateway: Gateway) -> None:
    schema = (await gateway.http.get("/openapi.json")).json()
    assert not [path for path in schema["paths"] if "docs" in path]
