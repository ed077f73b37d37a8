"""OpenAI's client for Python, never adapted, makes and edits pictures on a live server, blocking and awaited.

It believes no answer that is not exactly as OpenAI describes it. Its errors are in test_openai_errors.py.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import scorer
from tests.photos import likeness, noise, opened, png, rgb, told, window
from tests.process.asking import Ask, asking, pictures
from tests.relay import Relay
from tests.server import Server
from worker.backends import stub

pytestmark = pytest.mark.model

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module", params=["sync", "async"])
def ask(request: pytest.FixtureRequest, artists: Server) -> Iterator[Ask]:
    with ExitStack() as stack:
        yield asking(request.param, stack, artists.address)


# Generations


@pytest.mark.parametrize("model", ["shapes", "stub", "org/second"])
def test_three_pictures_are_those_of_three_seeds(ask: Ask, model: str) -> None:
    said = {"model": model, "prompt": PROMPT, "size": "256x256"}
    answer = ask("images.generate", **said, n=3, extra_body={"seed": 7})
    assert [row.seed for row in answer.data] == [7, 8, 9]
    single = [pictures(ask("images.generate", **said, extra_body={"seed": seed}))[0] for seed in (7, 8, 9)]
    assert pictures(answer) == single
    assert len({*single}) == 3
    assert (answer.size, answer.background, answer.output_format) == ("256x256", "opaque", "png")
    assert all(row.url is None for row in answer.data)
    usage = answer.usage
    assert usage.input_tokens == usage.input_tokens_details.text_tokens > 0
    assert usage.output_tokens == usage.output_tokens_details.image_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    for picture in single:
        assert opened(picture).size == (256, 256)
        if model == "shapes":
            assert scorer.score(picture, scorer.parse(PROMPT)).all, scorer.look(picture)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_each_format_is_what_it_says(ask: Ask, form: str) -> None:
    said = {"model": "shapes", "prompt": PROMPT, "size": "128x128", "extra_body": {"seed": 1}, "output_format": form}
    best, worst = (ask("images.generate", **said, output_compression=quality) for quality in (100, 5))
    [picture], [rough] = pictures(best), pictures(worst)
    assert best.output_format == form
    assert opened(picture).format == form.upper()
    assert opened(picture).size == (128, 128)
    assert scorer.score(png(rgb(picture)), scorer.parse(PROMPT)).all
    # A PNG keeps every pixel whatever is asked.
    assert (len(rough) < len(picture)) == (form != "png")


@pytest.mark.parametrize("form", ["png", "webp"])
def test_a_transparent_ground_is_clear(ask: Ask, form: str) -> None:
    answer = ask("images.generate", model="stub", prompt=PROMPT, background="transparent", output_format=form)
    assert answer.background == "transparent"
    image = opened(pictures(answer)[0])
    assert image.mode == "RGBA"
    assert image.getchannel("A").getextrema() == (0, 255)


def test_every_argument_of_the_client_is_taken(ask: Ask) -> None:
    answer = ask(
        "images.generate",
        model="org/second",
        prompt="naïve 猫 🐈\nline two",
        n=2,
        size="320x192",
        quality="high",
        style="vivid",
        moderation="low",
        background="auto",
        output_format="png",
        output_compression=80,
        response_format="b64_json",
        user="u1",
        extra_body={"seed": 42, "num_inference_steps": 3, "guidance_scale": 2.5, "negative_prompt": "blur", "cfg": {}},
    )
    for picture, seed in zip(pictures(answer), (42, 43), strict=True):
        facts = stub.read_back(picture)
        assert (facts["model"], facts["prompt"], facts["negative_prompt"]) == (
            "org/second",
            "naïve 猫 🐈\nline two",
            "blur",
        )
        assert (facts["seed"], facts["steps"], facts["guidance"]) == (seed, 3, 2.5)
        assert (facts["width"], facts["height"]) == (320, 192)


def test_an_answer_tells_how_to_make_it_again(ask: Ask) -> None:
    first = ask("images.generate", model="shapes", prompt=PROMPT, size="64x64", extra_body={"return_parameters": True})
    recipe = first.replicast
    again = ("seed", "steps", "guidance", "negative_prompt")
    second = ask(
        "images.generate",
        model=recipe["model"],
        prompt=PROMPT,
        size=recipe["size"],
        extra_body={name: recipe[name] for name in again},
    )
    assert pictures(first) == pictures(second)


# Edits


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a name that is not easily written into a header."""
    path = tmp_path_factory.mktemp("pictures") / 'in "put" é 猫.png'
    path.write_bytes(png(noise(1)))
    return path


@pytest.mark.parametrize("kind", ["bytes", "buffer", "path", "mislabelled", "list of one"])
def test_an_image_arrives_however_it_is_handed_over(ask: Ask, photo: Path, kind: str) -> None:
    data = photo.read_bytes()
    image: Any = {
        "bytes": data,
        "buffer": io.BytesIO(data),
        "path": photo,
        "mislabelled": ("photo.jpg", data, "image/jpeg"),
        "list of one": [photo],
    }[kind]
    [picture] = pictures(ask("images.edit", model="stub", image=image, prompt="make it green"))
    facts = stub.read_back(picture)
    assert (facts["task"], facts["images"]) == ("edit", told(noise(1)))
    # Without a size it is the picture's own.
    assert opened(picture).size == (96, 64)


def test_an_open_file_arrives(ask: Ask, photo: Path) -> None:
    with photo.open("rb") as file:
        [picture] = pictures(ask("images.edit", model="stub", image=file, prompt="make it green"))
    assert stub.read_back(picture)["images"] == told(noise(1))


def test_several_images_arrive_in_their_order(ask: Ask) -> None:
    given = [noise(seed) for seed in (3, 1, 2)]
    answer = ask(
        "images.edit",
        model="stub",
        image=[png(pixels) for pixels in given],
        prompt="side by side",
        n=2,
        size="256x128",
        extra_body={"seed": 5, "nested": {"a": 1}, "list": [1, 2]},
    )
    for picture, seed in zip(pictures(answer), (5, 6), strict=True):
        facts = stub.read_back(picture)
        assert (facts["images"], facts["seed"]) == (told(*given), seed)
        assert opened(picture).size == (256, 128)
    # 96x64 in squares of 16: three times 24.
    assert answer.usage.input_tokens_details.image_tokens == 72


def test_an_instruction_is_followed(ask: Ask) -> None:
    [before] = pictures(ask("images.generate", model="shapes", prompt=PROMPT, size="256x256", extra_body={"seed": 1}))
    answer = ask("images.edit", model="shapes", image=before, prompt="make it green", extra_body={"seed": 1})
    [after] = pictures(answer)
    assert answer.size == "256x256"
    assert scorer.score(after, scorer.parse("a green circle on a blue background")).all, scorer.look(after)


@pytest.mark.parametrize("model", ["shapes", "stub"])
def test_outside_of_a_mask_every_pixel_stays(ask: Ask, model: str) -> None:
    ground = noise(4, 256, 192)
    mask, inside = window(256, 192)
    # The stub draws from several: the mask belongs to the first of them.
    images = [png(ground), png(noise(5))] if model == "stub" else png(ground)
    answer = ask("images.edit", model=model, image=images, mask=mask, prompt=PROMPT, n=2, extra_body={"seed": 3})
    drawn = [rgb(picture) for picture in pictures(answer)]
    assert answer.size == "256x192"
    for pixels in drawn:
        assert np.array_equal(pixels[~inside], ground[~inside])
        assert np.mean(pixels[inside] != ground[inside]) > 0.5
    assert not np.array_equal(*drawn)


def test_a_variation_is_like_what_was_given(ask: Ask) -> None:
    [before] = pictures(ask("images.generate", model="shapes", prompt=PROMPT, size="256x256", extra_body={"seed": 1}))
    said = {"model": "shapes", "image": before, "n": 2, "response_format": "b64_json"}
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = ask("images.create_variation", **said, extra_body={"seed": 1, "strength": 0.3})
    one, two = pictures(answer)
    assert one != two
    assert opened(one).size == opened(two).size == (256, 256)
    for picture in (one, two):
        assert picture != before
        assert likeness(rgb(picture), rgb(before)) > 0.5


# Streams


@pytest.mark.parametrize("model", ["shapes", "stub"])
@pytest.mark.parametrize("task", ["generate", "edit"])
def test_a_stream_shows_what_the_picture_will_be(ask: Ask, model: str, task: str) -> None:
    said: dict[str, Any] = {"model": model, "prompt": PROMPT, "size": "256x256", "extra_body": {"seed": 3}}
    if task == "edit":
        [before] = pictures(ask("images.generate", **said))
        said |= {"image": before, "prompt": "make it green"}
    *partials, last = ask(f"images.{task}", **said, stream=True, partial_images=3)
    kind = "image_generation" if task == "generate" else "image_edit"
    assert [(event.type, event.partial_image_index) for event in partials] == [
        (f"{kind}.partial_image", index) for index in range(3)
    ]
    assert last.type == f"{kind}.completed"
    assert last.usage.total_tokens > 0
    for event in (*partials, last):
        assert (event.size, event.output_format, event.background) == ("256x256", "png", "opaque")
        assert opened(base64.b64decode(event.b64_json)).size == (256, 256)
    shown, made = (rgb(base64.b64decode(event.b64_json)) for event in (partials[-1], last))
    assert likeness(shown, made) > 0.8
    # It is the very picture that comes without a stream.
    assert pictures(ask(f"images.{task}", **said)) == [base64.b64decode(last.b64_json)]


def test_a_stream_without_previews_is_the_picture(ask: Ask) -> None:
    said = {"model": "stub", "prompt": PROMPT, "output_format": "webp", "n": 2, "extra_body": {"seed": 8}}
    events = ask("images.generate", **said, stream=True)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert {event.seed for event in events} == {8, 9}
    assert all(opened(base64.b64decode(event.b64_json)).format == "WEBP" for event in events)


# The wire


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_this_client_says_on_the_wire(artists: Server, photo: Path, kind: str) -> None:
    """What the table of forms in tests/http is made of: a client that says something else would need a row there."""
    with Relay(artists.address) as relay, ExitStack() as stack:
        ask = asking(kind, stack, relay.address)
        ask("images.edit", model="stub", image=photo.read_bytes(), prompt="x", extra_body={"flag": True, "list": [1]})
        heard = relay.heard
        assert b'name="image"; filename="upload"\r\nContent-Type: application/octet-stream\r\n' in heard
        assert heard.index(b'name="prompt"') < heard.index(b'name="image"')
        assert b'name="flag"\r\n\r\ntrue\r\n' in heard
        assert b'name="list[]"\r\n\r\n1\r\n' in heard
        ask("images.edit", model="stub", image=[photo], mask=png(np.zeros((64, 96, 4), np.uint8)), prompt="x")
        heard = relay.heard
        assert 'name="image[]"; filename="in %22put%22 é 猫.png"'.encode() in heard
        assert b'name="mask"; filename="upload"' in heard
        ask("models.retrieve", "org/second")
        assert relay.heard.startswith(b"GET /v1/models/org%2Fsecond HTTP/1.1\r\n")
