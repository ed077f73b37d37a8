"""Pictures in a JSON body, in every dialect of naming them: by data URL, and refused where they lie elsewhere."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.http.conftest import Gateway
from tests.http.test_bad_requests import expect_error
from tests.http.test_forms import EDIT, MASK, ONE, PROMPT, TWO

pytestmark = pytest.mark.asyncio(loop_scope="module")


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "said",
    [
        {"images": [{"image_url": url(ONE)}]},
        {"images": [{"image_url": {"url": url(ONE)}}]},
        {"images": [{"data_url": url(ONE), "name": "a.png"}]},
        {"images": [{"type": "input_image", "image_url": url(ONE), "detail": "high"}]},
        {"images": [{"url": url(ONE)}]},
        {"images": [url(ONE)]},
        {"images": url(ONE)},
        {"images": {"image_url": url(ONE)}},
        {"image": url(ONE)},
        {"image": [url(ONE)]},
        {"image": {"image_url": url(ONE)}},
        {"image": url(ONE, "image/jpeg")},
        {"image": url(ONE, "IMAGE/PNG; name=a.png").replace("data:", "DATA:")},
        {"image": base64.b64encode(ONE).decode()},
        {"image": url(ONE), "images": None, "mask": None},
    ],
    ids=lambda said: str(said)[:40],
)
async def test_a_picture_arrives_in_json(gateway: Gateway, said: dict[str, Any]) -> None:
    answer = await gateway.http.post(EDIT, json={"prompt": PROMPT, **said})
    assert answer.status_code == 200, answer.text
    run = gateway.script.runs[-1]
    assert run.task == "edit"
    assert gateway.script.given[run.job] == (ONE,)


@pytest.mark.parametrize(
    "mask", [url(MASK), {"image_url": url(MASK)}, {"data_url": url(MASK)}, [{"image_url": url(MASK)}]]
)
async def test_a_mask_arrives_in_json(gateway: Gateway, mask: object) -> None:
    body = {"mask": mask, "prompt": PROMPT, "images": [{"image_url": url(TWO)}, {"image_url": url(ONE)}]}
    answer = await gateway.http.post(EDIT, json=body)
    assert answer.status_code == 200, answer.text
    run = gateway.script.runs[-1]
    assert run.task == "inpaint"
    assert gateway.script.given[run.job] == (TWO, ONE, MASK)


@pytest.mark.parametrize(
    ("said", "code", "param"),
    [
        ({}, "invalid_value", "image"),
        ({"images": []}, "invalid_value", "image"),
        ({"images": [{"file_id": "file-1"}]}, "invalid_value", "images[0]"),
        ({"images": [url(ONE), {"image_url": "https://example.com/a.png"}]}, "unsupported_operation", "images[1]"),
        ({"image": "http://example.com/a.png"}, "unsupported_operation", "image"),
        ({"image": "HTTPS://example.com/a.png"}, "unsupported_operation", "image"),
        ({"image": "file:///etc/passwd"}, "invalid_image_file", "image"),
        ({"image": ""}, "invalid_image_file", "image"),
        ({"image": 1}, "invalid_value", "image"),
        ({"image": True}, "invalid_value", "image"),
        ({"image": {}}, "invalid_value", "image"),
        ({"image": {"image_url": 1}}, "invalid_value", "image"),
        ({"image": {"image_url": {"url": None}}}, "invalid_value", "image"),
        ({"image": [[url(ONE)]]}, "invalid_value", "image[0]"),
        ({"image": "data:image/png;base64,!!!!"}, "invalid_image_file", "image"),
        ({"image": "data:image/png,abc"}, "invalid_image_file", "image"),
        ({"image": "data:image/svg+xml;base64,PHN2Zz4="}, "invalid_image_file", "image"),
        ({"image": "data:;base64,猫"}, "invalid_image_file", "image"),
        ({"images": [url(ONE)] * 17}, "invalid_value", "images"),
        ({"images": [url(ONE)] * 4}, "unsupported_operation", "image"),
        ({"image": url(ONE), "mask": {"file_id": "file-1"}}, "invalid_value", "mask"),
        ({"image": url(ONE), "mask": [url(MASK), url(MASK)]}, "invalid_value", "mask"),
        ({"image": url(ONE), "mask": "https://example.com/a.png"}, "unsupported_operation", "mask"),
        ({"image": url(ONE), "markup": url(MASK)}, "unsupported_operation", "markup"),
    ],
)
async def test_a_wrong_picture_in_json_is_named(gateway: Gateway, said: dict[str, Any], code: str, param: str) -> None:
    gateway.script.runs.clear()
    expect_error(await gateway.http.post(EDIT, json={"prompt": PROMPT, **said}), 400, code, param)
    assert not gateway.script.runs
