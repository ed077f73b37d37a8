"""Whatever is asked, the answer is 4xx in OpenAI's error shape: it names the field, and tells nothing of the server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from tests.http.conftest import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

GENERATE = "/v1/images/generations"


@pytest.fixture(autouse=True)
def _no_bug(gateway: Gateway) -> Iterator[None]:
    """No request of this file is one too many: none is answered by a 500."""
    before = internal_errors(gateway)
    yield
    assert internal_errors(gateway) == before


def internal_errors(gateway: Gateway) -> float:
    samples = (sample for metric in gateway.state.metrics.registry.collect() for sample in metric.samples)
    return sum(s.value for s in samples if s.name == "replicast_http_requests_total" and s.labels["status"] == "500")


# What no message to a client may hold: a path, an address, a name of ours or of a library, a trace.
TELLTALE = re.compile(
    r"/(home|usr|tmp|work|root|opt|var)/|ipc://|0x[0-9a-f]{6}|Traceback|pydantic|File \"|\.py\b|line \d+, in"
)


def expect_error(answer: httpx2.Response, status: int, code: str, param: str | None = None) -> str:
    """`answer` is this error, in the shape of all errors; its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.headers["x-request-id"])
    assert answer.headers["openai-processing-ms"].isdecimal()
    body = answer.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert error["message"]
    assert len(error["message"]) < 1000
    assert not TELLTALE.search(error["message"])
    message: str = error["message"]
    return message


def prompt(**more: Any) -> dict[str, Any]:
    return {"prompt": "a cat", **more}


# Bodies: an object, or bytes as they are; then the code, and the field that is named.
VALUES: dict[str, tuple[dict[str, Any], str | None]] = {
    "prompt missing": ({}, "prompt"),
    "prompt empty": ({"prompt": ""}, "prompt"),
    "prompt of spaces": ({"prompt": " \t\n\u3000 "}, "prompt"),
    "prompt null": ({"prompt": None}, "prompt"),
    "prompt a number": ({"prompt": 1}, "prompt"),
    "prompt a list": ({"prompt": ["a cat"]}, "prompt"),
    "prompt too long": ({"prompt": "x" * 32_001}, "prompt"),
    "model a number": (prompt(model=1), "model"),
    "model too long": (prompt(model="m" * 257), "model"),
    "n a boolean": (prompt(n=True), "n"),
    "n a string": (prompt(n="2"), "n"),
    "n a fraction": (prompt(n=1.5), "n"),
    "n a whole fraction": (prompt(n=2.0), "n"),
    "n zero": (prompt(n=0), "n"),
    "n negative": (prompt(n=-1), "n"),
    "n eleven": (prompt(n=11), "n"),
    "n huge": (prompt(n=10**18), "n"),
    "n a list": (prompt(n=[1]), "n"),
    "size a number": (prompt(size=512), "size"),
    "size empty": (prompt(size=""), "size"),
    "size of one side": (prompt(size="512"), "size"),
    "size of three sides": (prompt(size="512x512x512"), "size"),
    "size of words": (prompt(size="bigxbig"), "size"),
    "size zero": (prompt(size="0x0"), "size"),
    "size negative": (prompt(size="-512x512"), "size"),
    "size of fractions": (prompt(size="512.0x512"), "size"),
    "size with spaces": (prompt(size=" 512 x 512 "), "size"),
    "size of other digits": (prompt(size="٥١٢x٥١٢"), "size"),
    "size absurd": (prompt(size="99999x99999"), "size"),
    "size endless": (prompt(size="9" * 5000 + "x" + "9" * 5000), "size"),
    "width without height": (prompt(width=512), "height"),
    "height without width": (prompt(height=512), "width"),
    "width a boolean": (prompt(width=True, height=512), "width"),
    "width huge": (prompt(width=10**9, height=512), "width"),
    "width against size": (prompt(width=512, height=512, size="256x256"), "size"),
    "seed negative": (prompt(seed=-1), "seed"),
    "seed a string": (prompt(seed="7"), "seed"),
    "seed a boolean": (prompt(seed=False), "seed"),
    "seed a fraction": (prompt(seed=0.5), "seed"),
    "seed past 63 bits": (prompt(seed=2**63), "seed"),
    "seed whose next passes 63 bits": (prompt(seed=2**63 - 1, n=2), "seed"),
    "steps zero": (prompt(steps=0), "steps"),
    "steps a boolean": (prompt(steps=True), "steps"),
    "steps a string": (prompt(steps="20"), "steps"),
    "steps over what the model makes": (prompt(steps=501), "steps"),
    "steps over anything": (prompt(steps=10**9), "steps"),
    "guidance negative": (prompt(guidance=-0.1), "guidance"),
    "guidance a string": (prompt(guidance="3"), "guidance"),
    "guidance a boolean": (prompt(guidance=True), "guidance"),
    "guidance over what the model takes": (prompt(guidance=10.5), "guidance"),
    "guidance over anything": (prompt(guidance=1e300), "guidance"),
    "negative prompt a number": (prompt(negative_prompt=1), "negative_prompt"),
    "negative prompt too long": (prompt(negative_prompt="x" * 32_001), "negative_prompt"),
    "response format unknown": (prompt(response_format="png"), "response_format"),
    "output format unknown": (prompt(output_format="bmp"), "output_format"),
    "output format of another case": (prompt(output_format="PNG"), "output_format"),
    "compression negative": (prompt(output_compression=-1), "output_compression"),
    "compression over a hundred": (prompt(output_compression=101), "output_compression"),
    "compression a string": (prompt(output_compression="80"), "output_compression"),
    "background unknown": (prompt(background="blue"), "background"),
    "stream a string": (prompt(stream="yes"), "stream"),
    "stream a number": (prompt(stream=1), "stream"),
    "partial images four": (prompt(partial_images=4), "partial_images"),
    "user a number": (prompt(user=5), "user"),
    "user too long": (prompt(user="u" * 4097), "user"),
    "quality a list": (prompt(quality=["high"]), "quality"),
    "all of it too much": (prompt(n=10, size="1024x1024", steps=101), "n"),
}

JSONS = {
    "empty": b"",
    "only spaces": b"  \n ",
    "broken": b'{"prompt": "a cat"',
    "with a comma too many": b'{"prompt": "a cat",}',
    "with a comment": b'{"prompt": "a cat"} // yes',
    "twice": b'{"prompt": "a cat"}{"prompt": "a cat"}',
    "with single quotes": b"{'prompt': 'a cat'}",
    "an array": b'[{"prompt": "a cat"}]',
    "a string": b'"a cat"',
    "a number": b"1",
    "null": b"null",
    "not a number": b'{"prompt": "a cat", "guidance": NaN}',
    "infinite": b'{"prompt": "a cat", "guidance": Infinity}',
    "infinite below": b'{"prompt": "a cat", "guidance": -Infinity}',
    "deep lists": b'{"prompt": "a cat", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "deep objects": b'{"prompt": "a cat", "x": ' + b'{"x":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
    "deep and unfinished": b"[" * 100_000,
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "a lone surrogate as a key": b'{"prompt": "a cat", "\\udc00": 1}',
    "a raw NUL": b'{"prompt": "a\x00cat"}',
    "bad UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "a cat"}'.encode("utf-16"),
    "a form": b"prompt=a+cat&n=1",
    "random bytes": bytes(range(256)),
}

# Numbers that JSON can write and nobody can use: whether they are no JSON or no value is the parser's affair.
NUMBERS = [
    "1e999",
    "-1e999",
    "1" * 400,
    "1" * 5000,
    "1e400",
    str(2**64),
    "1.7976931348623159e308",
    "-0.5",
    "true",
    '"20"',
]
FIELDS = ["n", "seed", "steps", "num_inference_steps", "guidance", "guidance_scale", "width", "output_compression"]


@pytest.mark.parametrize("what", VALUES)
async def test_a_wrong_value_is_refused_and_named(gateway: Gateway, what: str) -> None:
    body, param = VALUES[what]
    expect_error(await gateway.post(**body), 400, "invalid_value", param)
    assert not gateway.script.runs


@pytest.mark.parametrize("what", JSONS)
async def test_what_is_no_json_object_is_refused(gateway: Gateway, what: str) -> None:
    for headers in ({"content-type": "application/json"}, {}):
        answer = await gateway.http.post(GENERATE, content=JSONS[what], headers=headers)
        expect_error(answer, 400, "invalid_json")


@pytest.mark.parametrize("field", FIELDS)
async def test_no_number_is_too_strange(gateway: Gateway, field: str) -> None:
    for number in NUMBERS:
        content = f'{{"prompt": "a cat", "{field}": {number}}}'
        answer = await gateway.http.post(GENERATE, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, (number, answer.text)
        code = answer.json()["error"]["code"]
        assert code in ("invalid_json", "invalid_value"), number
        expect_error(answer, 400, code, answer.json()["error"]["param"])


async def test_the_last_of_two_equal_keys_counts_and_is_checked(gateway: Gateway) -> None:
    answer = await gateway.http.post(GENERATE, content=b'{"prompt": "a cat", "n": 1, "n": 11}')
    expect_error(answer, 400, "invalid_value", "n")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (prompt(stream=True, response_format="url"), "unsupported_operation", "stream"),
        (prompt(partial_images=1), "invalid_value", "partial_images"),
        (prompt(background="transparent"), "unsupported_operation", "background"),
        (prompt(model="org/second", negative_prompt="dogs"), "unsupported_operation", "negative_prompt"),
        (prompt(lora="ink"), "unknown_parameter", "lora"),
        (prompt(image="data:image/png;base64,", strength=0.5), "unsupported_operation", "image"),
        (prompt(scheduler="ddim"), "unsupported_operation", "scheduler"),
        (prompt(strict=True, colour="red"), "unknown_parameter", "colour"),
        (prompt(size="500x500"), "unsupported_size", "size"),
        (prompt(size="2048x2048"), "unsupported_size", "size"),
        (prompt(size="8x8"), "unsupported_size", "size"),
        (prompt(width=500, height=500), "unsupported_size", "size"),
        (prompt(model="org/second", size="1024x1024"), "unsupported_size", "size"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_not_done_otherwise(
    gateway: Gateway, body: dict[str, Any], code: str, param: str
) -> None:
    message = expect_error(await gateway.post(**body), 400, code, param)
    if code == "unsupported_size":
        assert re.search(r"\d+x\d+.*\d+x\d+", message), "it names the nearest sizes"
    assert not gateway.script.runs


@pytest.mark.parametrize("name", ["nonsense", "", "../../etc/passwd", "first ", "FIRST", "org", "m" * 256, "\x00"])
async def test_an_unknown_model_is_not_found(gateway: Gateway, name: str) -> None:
    if name:
        expect_error(await gateway.post(**prompt(model=name)), 404, "model_not_found", "model")
    path = httpx2.URL("http://127.0.0.1:8000/v1/models/" + "".join(f"%{byte:02x}" for byte in name.encode()))
    expect_error(await gateway.http.get(path), 404, "model_not_found", "model")


async def test_a_model_of_two_lines_is_not_found(gateway: Gateway) -> None:
    expect_error(await gateway.post(**prompt(model="a\nb")), 404, "model_not_found", "model")
    expect_error(await gateway.http.get("http://127.0.0.1:8000/v1/models/a%0ab"), 404, "not_found")


async def test_a_model_that_no_worker_holds_is_not_ready(gateway: Gateway) -> None:
    answer = await gateway.post(**prompt(model="third"))
    assert answer.status_code == 503
    assert 0 < int(answer.headers["retry-after"]) <= 60
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("not_ready", "server_error", None)


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/nonsense",
        "//",
        "/v1/images",
        "/v1/images/generations/",
        "/V1/models",
        "/%00",
        "/docs/../x",
        "/v1/images/edit",
    ],
)
async def test_an_unknown_path_is_not_found(gateway: Gateway, path: str) -> None:
    for method in ("GET", "POST"):
        expect_error(await gateway.http.request(method, f"http://127.0.0.1:8000{path}"), 404, "not_found")


async def test_a_path_cannot_write_into_its_error(gateway: Gateway) -> None:
    answer = await gateway.http.get("http://127.0.0.1:8000/%0d%0aset-cookie:x%1b[31m" + "x" * 3000)
    message = expect_error(answer, 404, "not_found")
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", message)


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "Multipart/Form-Data"])
async def test_a_form_is_not_read_here(gateway: Gateway, kind: str) -> None:
    content = b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na cat\r\n--x--\r\n'
    answer = await gateway.http.post(GENERATE, content=content, headers={"content-type": kind})
    expect_error(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "text/html; application/json"])
async def test_a_browser_says_json_or_is_not_heard(gateway: Gateway, kind: str) -> None:
    """Any page may send these without asking first; none may send application/json. Our own page has to, too."""
    headers = {"content-type": kind, "origin": "http://127.0.0.1:8000"}
    answer = await gateway.http.post(GENERATE, content=b'{"prompt": "a cat"}', headers=headers)
    expect_error(answer, 415, "unsupported_media_type")
    assert not gateway.script.runs


async def test_a_body_over_the_limit_is_refused_while_it_is_read(gateway: Gateway) -> None:
    limit = gateway.state.settings.max_body_bytes
    answer = await gateway.http.post(GENERATE, content=b" " * (limit + 1))
    expect_error(answer, 413, "payload_too_large")

    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * limit:
            sent += 65_536
            yield b" " * 65_536

    answer = await gateway.http.post(GENERATE, content=endless())
    assert "content-length" not in answer.request.headers
    expect_error(answer, 413, "payload_too_large")
    assert sent <= limit + 65_536


async def test_a_body_at_the_limit_is_read(gateway: Gateway) -> None:
    limit = gateway.state.settings.max_body_bytes
    content = b'{"prompt": ""}'
    answer = await gateway.http.post(GENERATE, content=content + b" " * (limit - len(content)))
    expect_error(answer, 400, "invalid_value", "prompt")


@pytest.mark.parametrize("length", ["-1", "abc", "1e9", "9" * 5000, "٣", "0x10", " "])
async def test_a_strange_content_length_is_not_believed(gateway: Gateway, length: str) -> None:
    """A server in front has its own opinion; this one only ever counts."""
    headers = {b"content-length": length.encode()}
    answer = await gateway.http.post(GENERATE, content=b'{"prompt": ""}', headers=headers)
    assert answer.status_code in (400, 413), answer.text
    error = answer.json()["error"]
    expect_error(answer, answer.status_code, error["code"], error["param"])
