"""POST /v1/images/edits and /variations: what is asked of a worker, at which size, within which bounds."""

from __future__ import annotations

import base64
import random
from typing import Any

import httpx2
import pytest

from shared.messages import Run
from tests.flavours import chunk, exif
from tests.http.conftest import Gateway, running
from tests.http.test_bad_requests import expect_error
from tests.pictures import hollow

pytestmark = pytest.mark.asyncio(loop_scope="module")

EDIT, VARY = "/v1/images/edits", "/v1/images/variations"


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def picture(width: int = 256, height: int = 256, more: bytes = b"") -> bytes:
    return hollow("png", width, height, more)


@pytest.fixture(autouse=True)
def _forget(gateway: Gateway) -> None:
    gateway.script.runs.clear()
    gateway.script.given.clear()


async def ask(gateway: Gateway, *images: bytes, mask: bytes | None = None, to: str = EDIT, **said: Any) -> Any:
    """An answer to a request with these pictures, as JSON."""
    body: dict[str, Any] = {"model": "first", "response_format": "b64_json", "prompt": "a cat"} | said
    body["images"] = [{"image_url": url(data)} for data in images]
    if mask is not None:
        body["mask"] = {"image_url": url(mask)}
    return await gateway.http.post(to, json=body)


async def told(gateway: Gateway, *images: bytes, **said: Any) -> tuple[Run, tuple[bytes, ...], dict[str, Any]]:
    """What a worker was told of a request that must succeed, what it was handed, and the answer."""
    answer: httpx2.Response = await ask(gateway, *images, **said)
    assert answer.status_code == 200, answer.text
    [run] = {run.job: run for run in gateway.script.runs}.values()
    return run, gateway.script.given[run.job], answer.json()


# What is asked


@pytest.mark.parametrize(
    ("said", "task", "strength"),
    [
        ({}, "edit", None),
        ({"mask": picture()}, "inpaint", 0.8),
        ({"strength": 0.3}, "variation", 0.3),
        ({"strength": 1}, "variation", 1.0),
        ({"mask": picture(), "strength": 0.3}, "inpaint", 0.3),
        ({"to": VARY}, "variation", 0.8),
        ({"to": VARY, "strength": 0.5}, "variation", 0.5),
        ({"to": VARY, "prompt": ""}, "variation", 0.8),
        ({"strength": None}, "edit", None),
    ],
)
async def test_the_task_follows_from_what_is_sent(
    gateway: Gateway, said: dict[str, Any], task: str, strength: float | None
) -> None:
    run, _, _ = await told(gateway, picture(), **said)
    assert (run.task, run.parameters.strength) == (task, strength)


async def test_the_mask_comes_last_and_all_as_they_were(gateway: Gateway) -> None:
    drawn = random.Random(0)
    one, two, mask = (picture(256, 256, drawn.randbytes(size)) for size in (0, 9_000_000, 1_000))
    run, given, _ = await told(gateway, one, two, mask=mask)
    assert run.task == "inpaint"
    assert given == (one, two, mask)


async def test_each_picture_of_several_is_made_from_all_that_was_sent(gateway: Gateway) -> None:
    answer = await ask(gateway, picture(), picture(64, 64), n=3, seed=7)
    assert [row["seed"] for row in answer.json()["data"]] == [7, 8, 9]
    assert len(gateway.script.given) == 3
    assert set(gateway.script.given.values()) == {(picture(), picture(64, 64))}


# Sizes


@pytest.mark.parametrize(
    ("given", "said", "size"),
    [
        ((256, 256), {}, "256x256"),
        ((500, 333), {}, "504x336"),
        ((8, 8), {}, "64x64"),
        ((1000, 40), {}, "1024x64"),
        ((4000, 3000), {}, "1024x768"),
        ((4096, 4096), {}, "1024x1024"),
        ((500, 333), {"size": "auto"}, "504x336"),
        ((500, 333), {"size": "128x64"}, "128x64"),
        ((500, 333), {"width": 128, "height": 64}, "128x64"),
        ((500, 333), {"strength": 0.5}, "504x336"),
        ((500, 333), {"to": VARY}, "504x336"),
        ((500, 333), {"mask": picture(500, 333)}, "500x333"),
        ((8, 8), {"mask": picture(8, 8)}, "8x8"),
        ((1000, 40), {"mask": picture(1000, 40)}, "1000x40"),
        ((3000, 2000), {"mask": picture(3000, 2000)}, "3000x2000"),
        ((500, 333), {"mask": picture(500, 333), "size": "auto"}, "500x333"),
        ((500, 333), {"mask": picture(500, 333), "size": "500x333"}, "500x333"),
        ((500, 333), {"mask": picture(500, 333), "width": 500, "height": 333}, "500x333"),
        ((500, 333), {"mask": picture(500, 333), "size": "128x64"}, "128x64"),
    ],
)
async def test_without_a_size_it_follows_the_first_picture(
    gateway: Gateway, given: tuple[int, int], said: dict[str, Any], size: str
) -> None:
    run, _, body = await told(gateway, picture(*given), **said)
    assert body["size"] == f"{run.parameters.width}x{run.parameters.height}" == size


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_a_picture_has_the_size_that_people_see(gateway: Gateway, orientation: int) -> None:
    lying = picture(320, 128, chunk(b"eXIf", exif(orientation)))
    upright = "128x320" if orientation > 4 else "320x128"
    for said in ({}, {"mask": picture(*map(int, upright.split("x")))}):
        gateway.script.runs.clear()
        _, _, body = await told(gateway, lying, **said)
        assert body["size"] == upright


async def test_the_second_picture_changes_no_size(gateway: Gateway) -> None:
    _, _, body = await told(gateway, picture(128, 64), picture(512, 512))
    assert body["size"] == "128x64"


@pytest.mark.parametrize("said", [{}, {"strength": 0.5}, {"to": VARY}])
async def test_a_size_that_is_not_made_is_refused_with_those_that_are(gateway: Gateway, said: dict[str, Any]) -> None:
    answer = await ask(gateway, picture(500, 333), size="500x333", **said)
    assert "504x336" in expect_error(answer, 400, "unsupported_size", "size")


async def test_under_a_mask_no_other_odd_size_is_made(gateway: Gateway) -> None:
    answer = await ask(gateway, picture(500, 333), mask=picture(500, 333), size="500x334")
    expect_error(answer, 400, "unsupported_size", "size")


# Bounds


@pytest.mark.parametrize(
    ("count", "said", "words"),
    [
        (4, {}, "at most 3 images"),
        (3, {"mask": picture()}, "at most 2 images beside a mask"),
        (2, {"strength": 0.5}, "from one image"),
    ],
)
async def test_more_pictures_than_a_model_looks_at_are_refused_and_not_left_out(
    gateway: Gateway, count: int, said: dict[str, Any], words: str
) -> None:
    answer = await ask(gateway, *[picture()] * count, **said)
    assert words in expect_error(answer, 400, "unsupported_operation", "image")
    assert not gateway.script.runs
    await told(gateway, *[picture()] * (count - 1), **said)


@pytest.mark.parametrize("said", [{}, {"mask": picture()}, {"strength": 0.5}, {"to": VARY}])
async def test_a_model_that_cannot_says_so(gateway: Gateway, said: dict[str, Any]) -> None:
    answer = await ask(gateway, picture(), model="org/second", **said)
    assert "cannot" in expect_error(answer, 400, "unsupported_operation", "model")
    assert not gateway.script.runs


@pytest.mark.parametrize(
    ("to", "said", "param"),
    [
        (EDIT, {"images": []}, "image"),
        (EDIT, {"images": None}, "image"),
        (EDIT, {"mask": [url(picture()), url(picture())]}, "mask"),
        (EDIT, {"prompt": None}, "prompt"),
        (EDIT, {"prompt": "  "}, "prompt"),
        (EDIT, {"strength": 0}, "strength"),
        (EDIT, {"strength": 1.01}, "strength"),
        (EDIT, {"strength": -0.5}, "strength"),
        (EDIT, {"strength": True}, "strength"),
        (EDIT, {"strength": "0.5"}, "strength"),
        (EDIT, {"input_fidelity": 1}, "input_fidelity"),
        (VARY, {"images": []}, "image"),
        (VARY, {"images": [url(picture()), url(picture())]}, "image"),
        (EDIT, {"images": [url(picture())] * 17}, "images"),
    ],
)
async def test_what_makes_no_sense_is_named(gateway: Gateway, to: str, said: dict[str, Any], param: str) -> None:
    body = {"model": "first", "prompt": "a cat", "response_format": "b64_json", "images": [url(picture())]} | said
    answer = await gateway.http.post(to, json={name: value for name, value in body.items() if value is not None})
    expect_error(answer, 400, "invalid_value", param)
    assert not gateway.script.runs


@pytest.mark.parametrize(
    ("to", "said", "param"),
    [(VARY, {"mask": url(picture())}, "mask"), (EDIT, {"markup": "x"}, "markup")],
)
async def test_what_is_done_elsewhere_or_nowhere_is_not_ignored(
    gateway: Gateway, to: str, said: dict[str, Any], param: str
) -> None:
    body = {"model": "first", "prompt": "a cat", "response_format": "b64_json", "images": [url(picture())]}
    expect_error(await gateway.http.post(to, json=body | said), 400, "unsupported_operation", param)


SIDES = [(7, 64), (64, 7), (16_384, 8), (8, 16_384), (0, 0), (4097, 4096), (2**31, 2**31)]


@pytest.mark.parametrize("size", SIDES, ids=str)
async def test_a_picture_beyond_the_bounds_is_refused_by_its_header(gateway: Gateway, size: tuple[int, int]) -> None:
    for images, mask, param in (
        ((picture(*size),), None, "images[0]"),
        ((picture(), picture(*size)), None, "images[1]"),
        ((picture(),), picture(*size), "mask"),
    ):
        expect_error(await ask(gateway, *images, mask=mask), 400, "invalid_image_file", param)
    assert not gateway.script.runs


async def test_a_picture_at_the_bounds_is_taken(gateway: Gateway) -> None:
    for size in ((8, 16_383), (16_383, 1024), (4096, 4096), (8, 8)):
        gateway.script.runs.clear()
        await told(gateway, picture(*size))
        assert len(gateway.script.runs) == 1


async def test_one_that_moves_is_refused(gateway: Gateway) -> None:
    moving = picture(64, 64, chunk(b"acTL", b"\0\0\0\2\0\0\0\0"))
    assert "animation" in expect_error(await ask(gateway, moving), 400, "invalid_image_file", "images[0]")


async def test_large_pictures_are_refused_by_their_bytes(root: Any) -> None:
    async with running(root / "bytes", workers=1, max_image_bytes=5000, max_upload_bytes=12_000) as gateway:
        await told(gateway, picture(64, 64, bytes(4900)), picture(64, 64, bytes(4900)))
        one = await ask(gateway, picture(64, 64, bytes(5000)))
        expect_error(one, 413, "payload_too_large", "images[0]")
        together = await ask(gateway, *[picture(64, 64, bytes(4900))] * 3)
        expect_error(together, 413, "payload_too_large", "images")
        base64_and_spaces = await gateway.http.post(EDIT, content=b" " * (12_000 // 3 * 4 + (256 << 10) + 1))
        expect_error(base64_and_spaces, 413, "payload_too_large")


async def test_work_is_bounded_by_all_that_it_takes_together(gateway: Gateway) -> None:
    """An inpainting may be larger than what the model draws; what it costs counts all the same."""
    answer = await ask(gateway, picture(4096, 4096), mask=picture(4096, 4096), n=1, steps=100)
    expect_error(answer, 400, "invalid_value", "n")


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'""'])
async def test_a_body_of_nothing_but_values_is_not_even_parsed(gateway: Gateway, value: bytes) -> None:
    """It is no longer than one of pictures may be, and would take seconds."""
    content = b'{"prompt":"a cat","x":[' + b",".join([value] * 200_000) + b"]}"
    expect_error(await gateway.http.post(EDIT, content=content), 400, "invalid_json")


# What comes back


async def test_the_answer_says_what_was_read_and_written(gateway: Gateway) -> None:
    _, _, body = await told(gateway, picture(), return_parameters=True, seed=3)
    assert body.keys() == {"created", "background", "data", "output_format", "size", "usage", "replicast"}
    assert body["usage"].keys() == {
        "input_tokens",
        "input_tokens_details",
        "output_tokens",
        "output_tokens_details",
        "total_tokens",
    }
    recipe = body["replicast"]
    assert (recipe["seed"], recipe["size"], recipe["model"]) == (3, "256x256", "first")
    assert "strength" not in recipe


async def test_what_it_takes_to_repeat_a_variation_is_told(gateway: Gateway) -> None:
    _, _, body = await told(gateway, picture(500, 333), strength=0.25, return_parameters=True, steps=9)
    recipe = body["replicast"]
    assert (recipe["strength"], recipe["steps"], recipe["size"]) == (0.25, 9, "504x336")
    gateway.script.runs.clear()
    again = {name: recipe[name] for name in ("seed", "steps", "guidance", "strength", "size", "negative_prompt")}
    run, _, _ = await told(gateway, picture(500, 333), **again)
    assert (run.parameters.strength, run.parameters.steps, run.seeds) == (0.25, 9, (recipe["seed"],))


async def test_usage_counts_what_was_read_once_and_what_was_written_for_each(gateway: Gateway) -> None:
    gateway.script.tokens["a cat"] = (7, 100, 256)
    try:
        answer = await ask(gateway, picture(), n=3)
    finally:
        gateway.script.tokens.clear()
    assert answer.json()["usage"] == {
        "input_tokens": 107,
        "input_tokens_details": {"text_tokens": 7, "image_tokens": 100},
        "output_tokens": 768,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 768},
        "total_tokens": 875,
    }
