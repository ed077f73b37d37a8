"""Pictures in a form, in every spelling that clients have for them: the very bytes reach the worker, in order."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.messages import Run
from tests.http.conftest import Gateway
from tests.http.test_bad_requests import expect_error
from tests.pictures import hollow

pytestmark = pytest.mark.asyncio(loop_scope="module")

EDIT = "/v1/images/edits"
# Bytes that a parser could stumble over: a boundary's beginnings, line ends, zeros.
ONE = hollow("png", 64, 64, b"\r\n--x\r\n--xyz-\r\n\r\n--\0\0\r")
TWO = hollow("webp", 128, 64, b"two")
THREE = hollow("jpeg", 64, 128, b"three\r\n")
MASK = hollow("png", 64, 64, b"mask")
PROMPT = "naïve 猫\r\nline two"
CRLF = b"\r\n"


def part(disposition: str, content: bytes | str, *headers: str) -> bytes:
    """One part: its disposition after `form-data`, and the lines that follow that one."""
    lines = (f"Content-Disposition: form-data; {disposition}", *headers)
    data = content.encode() if isinstance(content, str) else content
    return CRLF.join(line.encode() for line in lines) + CRLF * 2 + data + CRLF


def text(name: str, value: str) -> bytes:
    return part(f'name="{name}"', value)


def file(name: str, data: bytes, filename: str = "a.png", kind: str = "image/png") -> bytes:
    return part(f'name="{name}"; filename="{filename}"', data, f"Content-Type: {kind}")


def form(*parts: bytes, boundary: bytes = b"xyzzy") -> bytes:
    return b"".join(b"--" + boundary + CRLF + each for each in parts) + b"--" + boundary + b"--" + CRLF


async def posted(gateway: Gateway, body: Any, kind: str = "multipart/form-data; boundary=xyzzy", to: str = EDIT) -> Any:
    gateway.script.runs.clear()
    gateway.script.given.clear()
    return await gateway.http.post(to, content=body, headers={"content-type": kind})


async def given(
    gateway: Gateway, body: Any, kind: str = "multipart/form-data; boundary=xyzzy"
) -> tuple[Run, list[bytes]]:
    """What a worker was told of an edit that must succeed, and the pictures that it was handed."""
    answer = await posted(gateway, body, kind)
    assert answer.status_code == 200, answer.text
    [run] = {run.job: run for run in gateway.script.runs}.values()
    return run, list(gateway.script.given[run.job])


# Each is a form of a prompt and ONE.
SAID = text("prompt", PROMPT)
OCTETS = "application/octet-stream"
ALONE: dict[str, bytes] = {
    "image": form(SAID, file("image", ONE)),
    "image[]": form(SAID, file("image[]", ONE)),
    "image[0]": form(SAID, file("image[0]", ONE)),
    "images": form(SAID, file("images", ONE)),
    "images[]": form(SAID, file("images[]", ONE)),
    "the file before the texts": form(file("image", ONE), SAID),
    "openai's python, bytes": form(SAID, file("image", ONE, "upload", OCTETS)),
    "openai's python, a file": form(SAID, file("image", ONE, "in %22put%22 é 猫.png")),
    "openai's node, without a name": form(file("image", ONE, "unknown_file", OCTETS), SAID),
    "litellm": form(SAID, file("image[]", ONE, "/home/mé/pictures/in put.png")),
    "ai sdk": form(text("model", "first"), SAID, file("image", ONE, "blob")),
    "openai 0.28": form(SAID, file("image", ONE, "image", OCTETS)),
    "aiohttp": form(
        b"Content-Type: text/plain; charset=utf-8\r\n" + text("prompt", PROMPT),
        b'Content-Type: image/png\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n\r\n'
        + ONE
        + CRLF,
    ),
    "spring": form(
        part('name="prompt"', PROMPT, "Content-Type: text/plain;charset=UTF-8", "Content-Length: 21"),
        part('name="image"; filename="a"', ONE, "Content-Type: image/png", "Content-Transfer-Encoding: binary"),
    ),
    "lower-case headers": form(SAID, file("image", ONE)).replace(b"Content-", b"content-"),
    "names without quotes": form(part("name=prompt", PROMPT), part("name=image; filename=a.png", ONE)),
    "an empty name of the file": form(SAID, file("image", ONE, "")),
    "a name of the file in another charset": form(
        SAID, part("name=\"image\"; filename*=UTF-8''%e7%8c%ab.png", ONE, "Content-Type: image/png")
    ),
    "both names of the file": form(SAID, part("name=\"image\"; filename=a.png; filename*=UTF-8''%e7%8c%ab.png", ONE)),
    "no name of the file": form(SAID, part('name="image"', ONE, "Content-Type: image/png")),
    "a name with a semicolon": form(SAID, file("image", ONE, "a;b=c.png")),
    "a name of a windows path": form(SAID, file("image", ONE, "C:\\pictures\\a.png")),
    "no type": form(SAID, part('name="image"; filename="a"', ONE)),
    "a type that lies": form(SAID, file("image", ONE, "a.jpg", "image/jpeg")),
    "a type that lies more": form(SAID, file("image", ONE, "a.txt", "text/plain")),
    "a data url": form(SAID, text("image", "data:image/png;base64," + base64.b64encode(ONE).decode())),
    "a data url that lies": form(SAID, text("image[]", "data:image/jpeg;base64," + base64.b64encode(ONE).decode())),
    "bare base64": form(SAID, text("image", base64.b64encode(ONE).decode())),
    "words after the last boundary": form(SAID, file("image", ONE)) + b"That was a form.\r\n--xyzzy\r\n",
    "no line end at the end": form(SAID, file("image", ONE))[:-2],
    "a line end too many at the start": CRLF + form(SAID, file("image", ONE)),
}


@pytest.mark.parametrize("spelling", ALONE)
async def test_a_picture_arrives_however_it_is_written(gateway: Gateway, spelling: str) -> None:
    run, pictures = await given(gateway, ALONE[spelling])
    assert pictures == [ONE]
    assert (run.task, run.parameters.prompt) == ("edit", PROMPT)


@pytest.mark.parametrize(
    "names", [["image"] * 3, ["image[]"] * 3, ["image[0]", "image[1]", "image[2]"], ["images"] * 3, ["images[]"] * 3]
)
async def test_several_pictures_arrive_in_their_order(gateway: Gateway, names: list[str]) -> None:
    parts = [file(name, data) for name, data in zip(names, (TWO, ONE, THREE), strict=True)]
    for body in (form(SAID, *parts), form(*parts, SAID), form(parts[0], SAID, *parts[1:])):
        run, pictures = await given(gateway, body)
        assert pictures == [TWO, ONE, THREE]
        assert run.parameters.prompt == PROMPT


@pytest.mark.parametrize("name", ["mask", "mask[]", "mask[0]"])
async def test_a_mask_is_told_from_the_pictures(gateway: Gateway, name: str) -> None:
    for parts in (
        [file(name, MASK), file("image", ONE), file("image", TWO)],
        [file("image[]", ONE), file(name, MASK, "mask", OCTETS), file("image[]", TWO)],
    ):
        run, pictures = await given(gateway, form(SAID, *parts))
        assert run.task == "inpaint"
        assert pictures == [ONE, TWO, MASK]


@pytest.mark.parametrize(
    ("boundary", "kind"),
    [
        (b"xyzzy", "multipart/form-data; boundary=xyzzy"),
        (b"xyzzy", 'multipart/form-data; boundary="xyzzy"'),
        (b"xyzzy", "Multipart/Form-Data;boundary=xyzzy"),
        (b"xyzzy", "multipart/form-data; charset=utf-8; boundary=xyzzy"),
        (b"xyzzy", 'multipart/form-data; boundary="xyzzy"; charset="utf-8"'),
        (b"xyzzy", "multipart/form-data; BOUNDARY=xyzzy"),
        (b"a b", 'multipart/form-data; boundary="a b"'),
        (b"'()+_,-./:=?", 'multipart/form-data; boundary="\'()+_,-./:=?"'),
        (
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
            "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        (b"x" * 70, "multipart/form-data; boundary=" + "x" * 70),
    ],
)
async def test_a_boundary_may_be_written_in_many_ways(gateway: Gateway, boundary: bytes, kind: str) -> None:
    _, pictures = await given(gateway, form(SAID, file("image", ONE), boundary=boundary), kind)
    assert pictures == [ONE]


@pytest.mark.parametrize("length", [1, 7, 1000])
async def test_a_form_may_come_in_pieces_without_its_length(gateway: Gateway, length: int) -> None:
    body = form(file("image", ONE), SAID, file("mask", MASK))

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), length):
            yield body[at : at + length]

    run, pictures = await given(gateway, pieces())
    assert pictures == [ONE, MASK]
    assert run.parameters.prompt == PROMPT


async def test_a_form_says_what_json_says(gateway: Gateway) -> None:
    texts = {
        "n": "1",
        "model": "first",
        "size": "512x256",
        "seed": "7",
        "steps": "9",
        "guidance_scale": "7.5",
        "negative_prompt": "dogs",
        "output_format": "webp",
        "output_compression": "50",
        "response_format": "b64_json",
        "stream": "false",
        "partial_images": "0",
        "quality": "auto",
        "background": "auto",
        "input_fidelity": "high",
        "user": "",
        "priority": "-3",
        "nobody_knows": "true",
        "nested[a]": "1",
        "nested[b][c]": "2",
        "list[]": "1",
        "metadata[sampler]": "euler",
    }
    body = form(*(text(*field) for field in texts.items()), text("list[]", "2"), SAID, file("image", ONE))
    run, _ = await given(gateway, body)
    wish = run.parameters
    assert run.seeds == (7,)
    assert (wish.width, wish.height, wish.steps, wish.guidance) == (512, 256, 9, 7.5)
    assert (wish.negative_prompt, wish.output_format, wish.output_compression) == ("dogs", "webp", 50)


@pytest.mark.parametrize(
    ("said", "streamed"), [("true", True), ("True", True), ("1", True), ("False", False), ("0", False)]
)
async def test_yes_and_no_are_words(gateway: Gateway, said: str, streamed: bool) -> None:
    answer = await posted(gateway, form(SAID, text("stream", said), file("image", ONE)))
    assert answer.status_code == 200
    kind = "text/event-stream" if streamed else "application/json"
    assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([text("n", "")], "n"),
        ([text("n", "two")], "n"),
        ([text("n", "1.5")], "n"),
        ([text("n", "0")], "n"),
        ([text("n", "1"), text("n", "2")], "n"),
        ([text("n[]", "1")], "n"),
        ([text("n[a]", "1")], "n"),
        ([text("prompt", "another")], "prompt"),
        ([text("seed", "9" * 5000)], "seed"),
        ([text("guidance", "nan")], "guidance"),
        ([text("guidance", "1e400")], "guidance"),
        ([text("size", "")], "size"),
        ([text("stream", "perhaps")], "stream"),
        ([text("stream", "")], "stream"),
        ([text("num_inference_steps", "x")], "num_inference_steps"),
        ([text("metadata[steps]", "x")], "metadata.steps"),
        ([text("metadata[steps]", "3"), text("steps", "4")], "metadata.steps"),
        ([file("prompt", ONE)], "prompt"),
        ([file("picture", ONE)], "picture"),
        ([file("mask", MASK), file("mask", MASK)], "mask"),
        ([file("image", b"")], "image[1]"),
        ([file("image", b"GIF89a" + b"\0" * 99)], "image[1]"),
        ([file("mask", b"\x89PNG\r\n\x1a\n")], "mask"),
        ([text("mask", "data:image/png;base64,?")], "mask"),
        ([text("mask", "data:image/png,abc")], "mask"),
        ([text("mask", "")], "mask"),
    ],
)
async def test_a_wrong_value_in_a_form_is_named(gateway: Gateway, parts: list[bytes], param: str) -> None:
    answer = await posted(gateway, form(SAID, file("image", ONE), *parts))
    expect_error(answer, 400, answer.json()["error"]["code"], param)
    assert answer.json()["error"]["code"] in ("invalid_value", "invalid_image_file")
    assert not gateway.script.runs


async def test_a_strict_form_has_no_unknown_field(gateway: Gateway) -> None:
    for name in ("colour", "colour[]", "colour[a]"):
        body = form(SAID, text("strict", "true"), file("image", ONE), text(name, "1"))
        expect_error(await posted(gateway, body), 400, "unknown_parameter", "colour")
    await given(gateway, form(SAID, text("strict", "true"), file("image", ONE), file("mask", MASK)))


@pytest.mark.parametrize("spelling", ["image", "image[]", "the file before the texts", "aiohttp"])
async def test_a_variation_reads_the_same_forms(gateway: Gateway, spelling: str) -> None:
    body = ALONE[spelling].replace(
        b"--xyzzy\r\n", b"--xyzzy\r\n" + text("response_format", "b64_json") + b"--xyzzy\r\n", 1
    )
    answer = await posted(gateway, body, to="/v1/images/variations")
    assert answer.status_code == 200, answer.text
    [run] = gateway.script.runs
    assert run.task == "variation"
    assert gateway.script.given[run.job] == (ONE,)
