"""OpenAI's client for Node, never adapted, against a live server; the oldest that people still use where it differs."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import scorer
from tests.clients import installed
from tests.photos import likeness, noise, opened, png, rgb, told, window
from tests.relay import Relay
from tests.server import Server
from worker.backends import stub

pytestmark = pytest.mark.model

PROMPT = "a red circle on a blue background"
Line = dict[str, Any]
# Methods of the client with their bodies; what comes of each, line by line.
Calls = Callable[..., list[list[Line]]]


@pytest.fixture(params=["openai"])
def package(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def calls(node_modules: Path, artists: Server, tmp_path: Path, package: str) -> Calls:
    def made(*told: tuple[str, object], **more: Any) -> list[list[Line]]:
        said = [{"method": method, "body": body, **more} for method, body in told]
        lines = installed.javascript(node_modules, tmp_path, "openai.mjs", package, f"{artists.address}/v1", said=said)
        return [[line for line in lines if line["call"] == place] for place in range(len(said))]

    return made


both = pytest.mark.parametrize("package", ["openai", "openai4"], indirect=True)


def pictures(lines: list[Line]) -> list[bytes]:
    [line] = lines
    assert "answer" in line, line
    return [base64.b64decode(row["b64_json"], validate=True) for row in line["answer"]["data"]]


@both
def test_three_pictures_are_those_of_three_seeds(calls: Calls) -> None:
    said = {"model": "shapes", "prompt": PROMPT, "size": "256x256"}
    many, one = calls(("images.generate", {**said, "n": 3, "seed": 7}), ("images.generate", {**said, "seed": 8}))
    assert [row["seed"] for row in many[0]["answer"]["data"]] == [7, 8, 9]
    assert many[0]["request_id"].startswith("req_")
    assert pictures(one) == [pictures(many)[1]]
    for picture in pictures(many):
        assert opened(picture).size == (256, 256)
        assert scorer.score(picture, scorer.parse(PROMPT)).all, scorer.look(picture)


def test_each_format_is_what_it_says(calls: Calls) -> None:
    forms = ("png", "jpeg", "webp")
    said = {"model": "shapes", "prompt": PROMPT, "size": "128x128"}
    answers = calls(*(("images.generate", {**said, "output_format": form}) for form in forms))
    for form, lines in zip(forms, answers, strict=True):
        [picture] = pictures(lines)
        assert lines[0]["answer"]["output_format"] == form
        assert (opened(picture).format, opened(picture).size) == (form.upper(), (128, 128))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / 'in "put" é 猫.png'
    path.write_bytes(png(noise(1)))
    return str(path)


@both
def test_an_image_arrives_however_it_is_handed_over(calls: Calls, photo: str) -> None:
    texts = {"model": "stub", "prompt": "make it green", "seed": 5}
    ways = [{"as": "buffer", "name": "a.png", "type": "image/png"}, {"as": "nameless"}, {"as": "stream"}]
    images = [{"image": {"file": photo, **way}} for way in ways]
    # The file comes first in these, then last.
    bodies = [{**image, **texts} for image in images] + [{**texts, **image} for image in images]
    for lines in calls(*(("images.edit", body) for body in bodies)):
        [picture] = pictures(lines)
        facts = stub.read_back(picture)
        assert (facts["images"], facts["seed"], facts["prompt"]) == (told(noise(1)), 5, "make it green")
        assert opened(picture).size == (96, 64)


@both
def test_several_images_arrive_in_their_order(calls: Calls, tmp_path: Path) -> None:
    given = [noise(seed) for seed in (3, 1, 2)]
    for place, pixels in enumerate(given):
        (tmp_path / f"{place}.png").write_bytes(png(pixels))
    how = {"as": "buffer", "type": "image/png"}
    images = [{"file": str(tmp_path / f"{place}.png"), "name": f"{place}.png", **how} for place in range(3)]
    body = {"model": "stub", "image": images, "prompt": "side by side", "n": 2, "size": "256x128"}
    [lines] = calls(("images.edit", body))
    for picture in pictures(lines):
        assert stub.read_back(picture)["images"] == told(*given)
        assert opened(picture).size == (256, 128)


def test_outside_of_a_mask_every_pixel_stays(calls: Calls, tmp_path: Path) -> None:
    ground = noise(4, 256, 192)
    mask, inside = window(256, 192)
    (tmp_path / "ground.png").write_bytes(png(ground))
    (tmp_path / "mask.png").write_bytes(mask)
    body = {
        "mask": {"file": str(tmp_path / "mask.png"), "as": "stream"},
        "image": {"file": str(tmp_path / "ground.png"), "as": "stream"},
        "model": "shapes",
        "prompt": PROMPT,
    }
    [lines] = calls(("images.edit", body))
    [picture] = pictures(lines)
    pixels = rgb(picture)
    assert np.array_equal(pixels[~inside], ground[~inside])
    assert np.mean(pixels[inside] != ground[inside]) > 0.5


def drawn(calls: Calls, tmp_path: Path, **said: Any) -> tuple[bytes, dict[str, str]]:
    """A picture of the model's, and how to hand it over as a file."""
    [lines] = calls(("images.generate", {"model": "shapes", "prompt": PROMPT, "size": "256x256", **said}))
    [picture] = pictures(lines)
    (tmp_path / "before.png").write_bytes(picture)
    return picture, {"file": str(tmp_path / "before.png"), "as": "stream"}


@both
def test_a_variation_is_like_what_was_given(calls: Calls, tmp_path: Path) -> None:
    before, image = drawn(calls, tmp_path)
    body = {"model": "shapes", "image": image, "n": 2, "response_format": "b64_json", "strength": 0.3}
    [lines] = calls(("images.createVariation", body))
    for picture in pictures(lines):
        assert opened(picture).size == (256, 256)
        assert picture != before
        assert likeness(rgb(picture), rgb(before)) > 0.5


@pytest.mark.parametrize("task", ["generate", "edit"])
def test_a_stream_shows_what_the_picture_will_be(calls: Calls, tmp_path: Path, task: str) -> None:
    body: dict[str, Any] = {"model": "shapes", "prompt": PROMPT, "size": "256x256", "seed": 3}
    if task == "edit":
        _, image = drawn(calls, tmp_path, seed=3)
        body |= {"image": image, "prompt": "make it green"}
    streamed, whole = calls((f"images.{task}", {**body, "stream": True, "partial_images": 3}), (f"images.{task}", body))
    events = [line["event"] for line in streamed]
    kind = "image_generation" if task == "generate" else "image_edit"
    assert [(event["type"], event.get("partial_image_index")) for event in events] == [
        *((f"{kind}.partial_image", index) for index in range(3)),
        (f"{kind}.completed", None),
    ]
    shown, made = (base64.b64decode(event["b64_json"]) for event in events[-2:])
    assert likeness(rgb(shown), rgb(made)) > 0.8
    assert pictures(whole) == [made]


@both
def test_models_are_listed_and_found_by_name(calls: Calls) -> None:
    listed, [found] = calls(("models.list", None), ("models.retrieve", "org/second"))
    assert [line["item"]["id"] for line in listed] == ["shapes", "stub", "org/second", "failing", "breaking", "held"]
    assert (found["answer"]["id"], found["answer"]["object"]) == ("org/second", "model")


TROUBLES: list[tuple[str, int, str, dict[str, Any]]] = [
    ("BadRequestError", 400, "invalid_value", {"n": 11}),
    ("BadRequestError", 400, "invalid_value", {"n": 11, "stream": True}),
    ("NotFoundError", 404, "model_not_found", {"model": "nonsense"}),
    ("", 413, "payload_too_large", {"padding": "x" * 300_000}),
    ("RateLimitError", 429, "queue_full", {"model": "held", "n": 10}),
    ("InternalServerError", 500, "job_failed", {"model": "failing"}),
    ("InternalServerError", 503, "not_ready", {"model": "absent"}),
    ("InternalServerError", 504, "expired", {"model": "held", "timeout_seconds": 0.2}),
]


def test_each_status_is_its_own_error(calls: Calls) -> None:
    bodies = [{"model": "stub", "prompt": PROMPT, **body} for *_, body in TROUBLES]
    answers = calls(*(("images.generate", body) for body in bodies))
    for (kind, status, code, _), [line] in zip(TROUBLES, answers, strict=True):
        error = line["error"]
        assert (error["status"], error["code"]) == (status, code)
        assert {*error["kinds"]} == {"OpenAIError", "APIError", *kind.split()}
        assert error["id"].startswith("req_")
        assert error["message"].startswith(f"{status} ")


def test_what_goes_wrong_in_a_stream_is_thrown_in_it(calls: Calls) -> None:
    body = {"model": "breaking", "prompt": PROMPT, "stream": True, "partial_images": 1}
    [[first, last]] = calls(("images.generate", body))
    assert first["event"]["type"] == "image_generation.partial_image"
    assert {*last["error"]["kinds"]} == {"OpenAIError", "APIError"}
    assert (last["error"]["code"], last["error"].get("status")) == ("job_failed", None)


def test_a_timeout_is_its_own_error(calls: Calls) -> None:
    [[line]] = calls(("images.generate", {"model": "held", "prompt": PROMPT}), options={"timeout": 500})
    assert "APIConnectionTimeoutError" in line["error"]["kinds"]


def test_the_headers_of_an_answer(calls: Calls) -> None:
    options = {"headers": {"x-request-id": "mine"}}
    [[line]] = calls(("images.generate", {"model": "stub", "prompt": PROMPT}), raw=True, options=options)
    assert (line["status"], line["request_id"], line["headers"]["x-request-id"]) == (200, "mine", "mine")
    assert line["headers"]["content-type"] == "application/json"
    assert int(line["headers"]["openai-processing-ms"]) >= 0
    assert "inference;dur=" in line["headers"]["server-timing"]
    assert len(pictures([line])) == 1


def test_what_these_clients_say_on_the_wire(node_modules: Path, artists: Server, tmp_path: Path, photo: str) -> None:
    """What the table of forms in tests/http is made of: a client that says something else would need a row there."""
    with Relay(artists.address) as relay:

        def heard(package: str, method: str, body: object) -> bytes:
            said = [{"method": method, "body": body}]
            installed.javascript(node_modules, tmp_path, "openai.mjs", package, f"{relay.address}/v1", said=said)
            return relay.heard

        def edit(**how: Any) -> bytes:
            return heard("openai", "images.edit", {"image": {"file": photo, **how}, "model": "stub", "prompt": "x"})

        streamed = edit(**{"as": "stream"}).lower()
        assert b"\r\ntransfer-encoding: chunked\r\n" in streamed
        assert b"\r\ncontent-length:" not in streamed
        assert b"content-type: application/octet-stream" in streamed
        assert streamed.index(b'name="image"') < streamed.index(b'name="prompt"')
        nameless = edit(**{"as": "nameless"})
        assert b'name="image"; filename="unknown_file"\r\nContent-Type: application/octet-stream' in nameless
        assert b"content-length: " in nameless.lower()
        # The newer escapes the slash, the older does not.
        assert heard("openai", "models.retrieve", "org/second").startswith(b"GET /v1/models/org%2Fsecond HTTP")
        assert heard("openai4", "models.retrieve", "org/second").startswith(b"GET /v1/models/org/second HTTP")
