"""Clients of others, never adapted, generate and edit on a live server: litellm, the AI SDK, Haystack, Together."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import scorer
from tests.clients import installed
from tests.photos import noise, opened, png, rgb, told, window
from tests.server import Server
from worker.backends import stub

# The first test installs the clients, once for this checkout.
pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT = "a red circle on a blue background"
# A client by its name and what is said to it; what it made of the answer.
Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def pypi(interpreter: Path, artists: Server) -> Call:
    def call(client: str, **said: Any) -> dict[str, Any]:
        [line] = installed.python(interpreter, "pypi.py", client, f"{artists.address}/v1", said=said)
        return line

    return call


@pytest.fixture
def npm(node_modules: Path, artists: Server, tmp_path: Path) -> Call:
    def call(provider: str, **said: Any) -> dict[str, Any]:
        [line] = installed.javascript(node_modules, tmp_path, "ai.mjs", provider, f"{artists.address}/v1", said=said)
        return line

    return call


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Two files, the first with a name that is not easily written into a header."""
    paths = [tmp_path / "in put é 猫.png", tmp_path / "b.png"]
    for seed, path in enumerate(paths):
        path.write_bytes(png(noise(seed)))
    return [str(path) for path in paths]


def pictures(line: dict[str, Any]) -> list[bytes]:
    assert "answer" in line, line
    return [base64.b64decode(row["b64_json"], validate=True) for row in line["answer"]["data"]]


def right(picture: bytes) -> bool:
    return scorer.score(picture, scorer.parse(PROMPT)).all


# litellm


@pytest.mark.parametrize("model", ["shapes", "org/second"])
def test_litellm_generates(pypi: Call, model: str) -> None:
    line = pypi("litellm_generate", model=model, prompt=PROMPT, n=2, size="256x256", extra_body={"seed": 7})
    drawn = pictures(line)
    assert [opened(picture).size for picture in drawn] == [(256, 256)] * 2
    if model == "shapes":
        assert all(right(picture) for picture in drawn)
    else:
        assert [stub.read_back(picture)["seed"] for picture in drawn] == [7, 8]
    assert line["answer"]["usage"]["total_tokens"] > 0


def test_litellm_edits(pypi: Call, photos: list[str]) -> None:
    said = {"model": "stub", "prompt": "side by side", "size": "256x128", "n": 2}
    for picture in pictures(pypi("litellm_edit", images=photos, **said)):
        assert stub.read_back(picture)["images"] == told(noise(0), noise(1))
        assert opened(picture).size == (256, 128)
    # One goes as `image[]` too.
    [picture] = pictures(pypi("litellm_edit", images=photos[:1], model="stub", prompt="x"))
    assert stub.read_back(picture)["images"] == told(noise(0))


def test_litellm_edits_under_a_mask(pypi: Call, tmp_path: Path) -> None:
    ground, (mask, inside) = noise(4, 256, 192), window(256, 192)
    (tmp_path / "ground.png").write_bytes(png(ground))
    (tmp_path / "mask.png").write_bytes(mask)
    files = {"images": [str(tmp_path / "ground.png")], "mask": str(tmp_path / "mask.png")}
    [picture] = pictures(pypi("litellm_edit", **files, model="shapes", prompt=PROMPT))
    assert np.array_equal(rgb(picture)[~inside], ground[~inside])
    assert np.mean(rgb(picture)[inside] != ground[inside]) > 0.5


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("BadRequestError", 400, {"n": 11}),
        ("NotFoundError", 404, {"model": "nonsense"}),
        ("RateLimitError", 429, {"model": "held", "n": 10}),
        ("InternalServerError", 500, {"model": "failing"}),
        ("ServiceUnavailableError", 503, {"model": "absent"}),
    ],
)
def test_litellm_raises_what_it_should(pypi: Call, kind: str, status: int, said: dict[str, Any]) -> None:
    error = pypi("litellm_generate", **{"model": "stub", "prompt": PROMPT, **said})["error"]
    assert (error["kinds"][0], error["status"]) == (kind, status), error


# The AI SDK


@pytest.mark.parametrize("provider", ["openai", "compatible"])
@pytest.mark.parametrize("model", ["shapes", "org/second", "gpt-image-1"])
def test_the_ai_sdk_generates(npm: Call, provider: str, model: str) -> None:
    line = npm(provider, model=model, prompt=PROMPT, n=3, size="256x256")
    drawn = pictures(line)
    assert len({*drawn}) == 3
    for picture, row in zip(drawn, line["answer"]["data"], strict=True):
        assert (opened(picture).size, row["mediaType"]) == ((256, 256), "image/png")
        assert model == "org/second" or right(picture)


@pytest.mark.parametrize("provider", ["openai", "compatible"])
def test_the_ai_sdk_edits(npm: Call, provider: str, photos: list[str]) -> None:
    for given in (photos[:1], photos):
        asked = {"text": "side by side", "images": given}
        [picture] = pictures(npm(provider, model="stub", prompt=asked, size="256x128"))
        facts = stub.read_back(picture)
        assert (facts["prompt"], facts["task"]) == ("side by side", "edit")
        assert facts["images"] == told(noise(0), noise(1))[: len(given)]


@pytest.mark.parametrize("provider", ["openai", "compatible"])
def test_the_ai_sdk_edits_under_a_mask(npm: Call, provider: str, tmp_path: Path) -> None:
    ground, (mask, inside) = noise(4, 256, 192), window(256, 192)
    (tmp_path / "ground.png").write_bytes(png(ground))
    (tmp_path / "mask.png").write_bytes(mask)
    asked = {"text": PROMPT, "images": [str(tmp_path / "ground.png")], "mask": str(tmp_path / "mask.png")}
    [picture] = pictures(npm(provider, model="shapes", prompt=asked))
    assert np.array_equal(rgb(picture)[~inside], ground[~inside])


def test_the_ai_sdk_tells_what_is_wrong(npm: Call) -> None:
    error = npm("openai", model="stub", prompt=PROMPT, size="1x1")["error"]
    assert (error["kinds"], error["status"]) == (["AI_APICallError"], 400)
    assert error["message"].startswith("Invalid size '1x1'")


# Others


def test_haystack_generates(pypi: Call) -> None:
    line = pypi("haystack", model="shapes", prompt=PROMPT, size="1024x1024")
    [picture] = [base64.b64decode(image) for image in line["answer"]["images"]]
    assert opened(picture).size == (1024, 1024)
    assert right(picture)


def test_together_generates(pypi: Call) -> None:
    said = {
        "width": 320,
        "height": 256,
        "steps": 3,
        "seed": 5,
        "n": 2,
        "negative_prompt": "dogs",
        "guidance_scale": 2.5,
    }
    line = pypi("together", model="org/second", prompt=PROMPT, response_format="base64", output_format="png", **said)
    for picture, seed in zip(pictures(line), (5, 6), strict=True):
        facts = stub.read_back(picture)
        assert (facts["width"], facts["height"], facts["steps"], facts["seed"]) == (320, 256, 3, seed)
        assert (facts["negative_prompt"], facts["guidance"]) == ("dogs", 2.5)
