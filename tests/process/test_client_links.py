"""Clients that want addresses get a `url` beside no picture, where they asked for one or always expected one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from shared.formats import image_header
from tests import scorer
from tests.clients import installed
from tests.photos import noise, opened, png, told
from tests.process.asking import Ask, asking
from tests.server import Server
from worker.backends import stub

pytestmark = pytest.mark.model

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module", params=["sync", "async"])
def ask(request: pytest.FixtureRequest, artists: Server) -> Iterator[Ask]:
    with ExitStack() as stack:
        yield asking(request.param, stack, artists.address)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(png(noise(1)))
    return path


def fetched(server: Server, url: str, form: str = "png") -> bytes:
    """The picture at an address of this server's."""
    place = urlsplit(url)
    assert f"{place.scheme}://{place.netloc}" == server.address
    # Some clients take what it is from the end of the path.
    assert place.path.startswith("/v1/images/files/")
    assert place.path.endswith(f".{form}")
    answer = server.http.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"image/{form}"
    return answer.content


def linked(server: Server, rows: Any, form: str = "png") -> list[bytes]:
    for row in rows:
        assert row.b64_json is None
        assert row.url
    return [fetched(server, row.url, form) for row in rows]


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_who_asks_for_addresses_gets_addresses(ask: Ask, artists: Server, form: str) -> None:
    said = {"model": "shapes", "prompt": PROMPT, "size": "256x256", "output_format": form, "extra_body": {"seed": 7}}
    rows = ask("images.generate", **said, n=2, response_format="url").data
    assert [row.seed for row in rows] == [7, 8]
    one, two = linked(artists, rows, form)
    assert one != two
    held = ask("images.generate", **said, n=2, response_format="b64_json").data
    assert [base64.b64decode(row.b64_json) for row in held] == [one, two]
    assert all(row.url is None for row in held)


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3"])
def test_who_asks_an_old_model_expects_addresses(ask: Ask, artists: Server, model: str) -> None:
    [picture] = linked(artists, ask("images.generate", model=model, prompt=PROMPT, style="vivid").data)
    assert scorer.score(picture, scorer.parse(PROMPT)).all
    [row] = ask("images.generate", model=model, prompt=PROMPT, response_format="b64_json").data
    assert row.url is None
    assert opened(base64.b64decode(row.b64_json)).format == "PNG"


@pytest.mark.parametrize("model", ["shapes", "gpt-image-1"])
def test_who_asks_another_expects_pictures(ask: Ask, model: str) -> None:
    [row] = ask("images.generate", model=model, prompt=PROMPT).data
    assert row.url is None
    assert opened(base64.b64decode(row.b64_json)).format == "PNG"


def test_edits_and_variations_have_addresses_too(ask: Ask, artists: Server, photo: Path) -> None:
    rows = ask("images.edit", model="stub", image=photo, prompt="x", response_format="url").data
    assert [stub.read_back(picture)["images"] for picture in linked(artists, rows)] == [told(noise(1))]
    with pytest.warns(DeprecationWarning, match="deprecated"):
        rows = ask("images.create_variation", model="stub", image=photo, n=2).data
    assert [stub.read_back(picture)["task"] for picture in linked(artists, rows)] == ["variation"] * 2


def test_a_stream_has_no_addresses(ask: Ask) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask("images.generate", model="stub", prompt=PROMPT, stream=True, response_format="url")
    assert (refused.value.code, refused.value.param) == ("unsupported_operation", "stream")


@pytest.mark.parametrize("package", ["openai", "openai4"])
def test_nodes_client_expects_the_same(
    node_modules: Path, artists: Server, photo: Path, tmp_path: Path, package: str
) -> None:
    def call(method: str, **body: Any) -> list[dict[str, Any]]:
        said = [{"method": method, "body": body}]
        [line] = installed.javascript(node_modules, tmp_path, "openai.mjs", package, f"{artists.address}/v1", said=said)
        rows: list[dict[str, Any]] = line["answer"]["data"]
        assert all("b64_json" not in row for row in rows)
        return rows

    [row] = call("images.generate", model="dall-e-3", prompt=PROMPT, quality="standard", style="vivid")
    assert scorer.score(fetched(artists, row["url"]), scorer.parse(PROMPT)).all
    [row] = call("images.createVariation", model="stub", image={"file": str(photo), "as": "stream"})
    assert stub.read_back(fetched(artists, row["url"]))["images"] == told(noise(1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_litellm_and_langchain_expect_the_same(interpreter: Path, artists: Server, photo: Path) -> None:
    def call(client: str, **said: Any) -> Any:
        [line] = installed.python(interpreter, "pypi.py", client, f"{artists.address}/v1", said=said)
        return line["answer"]

    [row] = call("litellm_vary", model="stub", image=str(photo))["data"]
    # It keeps the model to itself: the server's first one is asked.
    header = image_header(fetched(artists, row["url"]))
    assert header is not None
    assert header.format == "png"
    urls = call("langchain", model="dall-e-2", prompt=PROMPT, n=2, size="256x256").split("\n")
    assert len(urls) == 2
    for url in urls:
        assert scorer.score(fetched(artists, url), scorer.parse(PROMPT)).all
