"""`url` results: who gets an address instead of a picture, that it leads to it, and what a lack of room means."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import Gateway, running
from tests.pictures import hollow

pytestmark = pytest.mark.asyncio(loop_scope="module")

PNG = {"image": ("a.png", hollow("png", 256, 256), "image/png")}


async def rows(gateway: Gateway, **body: Any) -> list[dict[str, Any]]:
    answer = await gateway.post(prompt="a cat", **body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "b64_json"),
        ({"model": "first"}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "dall-e-2"}, "url"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "dall-e-3", "response_format": None}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "dall-e-2", "response_format": "base64"}, "b64_json"),
        ({"response_format": "url"}, "url"),
        ({"model": "gpt-image-1", "response_format": "url"}, "url"),
        ({"response_format": "base64"}, "b64_json"),
    ],
)
async def test_one_of_the_two_and_never_both(gateway: Gateway, body: dict[str, Any], kind: str) -> None:
    [row] = await rows(gateway, **body)
    assert row.keys() == {kind, "seed"}


@pytest.mark.parametrize(("asked", "kind"), [({}, "url"), ({"response_format": "b64_json"}, "b64_json")])
async def test_a_variation_is_linked_unless_it_says_otherwise(
    gateway: Gateway, asked: dict[str, str], kind: str
) -> None:
    answer = await gateway.http.post("/v1/images/variations", files=PNG, data=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0].keys() == {kind, "seed"}


async def test_an_edit_is_linked_only_for_old_names(gateway: Gateway) -> None:
    for name, kind in (("gpt-image-1", "b64_json"), ("dall-e-2", "url"), ("first", "b64_json")):
        data = {"prompt": "a cat", "model": name}
        answer = await gateway.http.post("/v1/images/edits", files=PNG, data=data)
        assert answer.json()["data"][0].keys() == {kind, "seed"}


@pytest.mark.parametrize(("form", "end"), [("png", ".png"), ("jpeg", ".jpeg"), ("webp", ".webp")])
async def test_an_address_leads_to_the_picture(gateway: Gateway, form: str, end: str) -> None:
    linked = await rows(gateway, response_format="url", output_format=form, n=3, seed=7)
    held = await rows(gateway, output_format=form, n=3, seed=7)
    assert [row["seed"] for row in linked] == [7, 8, 9]
    assert len({row["url"] for row in linked}) == 3
    for row, same in zip(linked, held, strict=True):
        assert row["url"].startswith("http://127.0.0.1:8000/v1/images/files/")
        assert row["url"].endswith(end)
        answer = await gateway.http.get(row["url"])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == f"image/{form}"
        assert answer.content == base64.b64decode(same["b64_json"])


@pytest.mark.asyncio(loop_scope="function")
async def test_a_public_address_goes_into_the_answer(tmp_path: Path) -> None:
    async with running(tmp_path, public_url="https://pictures.example/replicast") as gateway:
        [row] = await rows(gateway, response_format="url")
    assert row["url"].startswith("https://pictures.example/replicast/v1/images/files/")


@pytest.mark.asyncio(loop_scope="function")
async def test_without_room_nothing_is_made(tmp_path: Path) -> None:
    async with running(tmp_path, results_max_bytes=1 << 20) as gateway:
        answer = await gateway.post(prompt="a cat", response_format="url", n=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
        assert not gateway.script.runs
        assert len(await rows(gateway, response_format="url")) == 1, "what was reserved was given back"
