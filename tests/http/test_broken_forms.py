"""A form that is broken, too large or too odd is refused in our own words; what is left of it is never carried out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.conftest import Gateway, running
from tests.http.test_bad_requests import expect_error, internal_errors
from tests.http.test_forms import CRLF, MASK, ONE, SAID, file, form, part, posted, text
from tests.pictures import hollow

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = form(SAID, file("image", ONE), text("n", "1"), file("mask", MASK))
KIND = "multipart/form-data; boundary=xyzzy"


@pytest.fixture(autouse=True)
def _no_bug(gateway: Gateway) -> Iterator[None]:
    before = internal_errors(gateway)
    yield
    assert internal_errors(gateway) == before


async def test_a_form_that_is_cut_short_is_refused_wherever_it_is_cut(gateway: Gateway) -> None:
    """Else a mask that did not arrive would be an edit of the whole picture."""
    closed = len(WHOLE) - len(CRLF)
    for end in range(closed):
        answer = await posted(gateway, WHOLE[:end])
        expect_error(answer, 400, "invalid_value", answer.json()["error"]["param"])
        assert not gateway.script.runs, f"cut at {end}, after {WHOLE[:end][-40:]!r}"
    assert (await posted(gateway, WHOLE[:closed])).status_code == 200


BROKEN: dict[str, tuple[bytes, str]] = {
    "no boundary in the header": (WHOLE, "multipart/form-data"),
    "an empty boundary": (WHOLE, "multipart/form-data; boundary="),
    "a boundary of another form": (WHOLE, "multipart/form-data; boundary=other"),
    "a boundary that is longer": (WHOLE, "multipart/form-data; boundary=xyzzyx"),
    "a boundary that is endless": (WHOLE, "multipart/form-data; boundary=" + "x" * 5000),
    "an empty body": (b"", KIND),
    "an empty form": (b"--xyzzy--\r\n", KIND),
    "a form of nothing": (form(), KIND),
    "words before the first boundary": (b"This is a form.\r\n" + WHOLE, KIND),
    "line feeds alone": (WHOLE.replace(CRLF, b"\n"), KIND),
    "json under the name of a form": (b'{"prompt": "a cat"}', KIND),
    "zeros": (b"\0" * 1000, KIND),
    "no name": (form(SAID, part('filename="a.png"', ONE)), KIND),
    "no disposition": (form(SAID, b"Content-Type: image/png\r\n\r\n" + ONE + CRLF), KIND),
    "a header without a colon": (form(SAID, b"Content-Disposition\r\n\r\nx\r\n"), KIND),
    "a header that goes on": (form(SAID, part('name="image"; filename="a.png"', ONE, " folded")), KIND),
    "a huge header": (form(SAID, part('name="image"; filename="a.png"', ONE, "X-Long: " + "x" * 100_000)), KIND),
    "a huge name of a file": (form(SAID, file("image", ONE, "x" * 100_000)), KIND),
    "a huge name": (form(SAID, text("x" * 100_000, "1")), KIND),
    "many headers": (form(SAID, part('name="a"', "1", *(f"X-{index}: 1" for index in range(100)))), KIND),
    "a thousand fields": (form(SAID, file("image", ONE), *(text(f"f{i}", "1") for i in range(1000))), KIND),
    "a hundred files": (form(SAID, *(file("image[]", ONE) for _ in range(100))), KIND),
    "a hundred masks": (form(SAID, file("image", ONE), *(file("mask", MASK) for _ in range(100))), KIND),
    "a text that is a megabyte": (form(SAID, file("image", ONE), text("user", "x" * (1 << 20))), KIND),
    "a form in a form": (
        form(
            SAID,
            part('name="image"', form(file("a", ONE), boundary=b"in"), "Content-Type: multipart/mixed; boundary=in"),
        ),
        KIND,
    ),
    "a charset that nobody knows": (form(file("image", ONE)), KIND + "; charset=nonsense"),
    "a charset that is none": (form(text("prompt", "x"), file("image", ONE)), KIND + "; charset=undefined"),
    "brackets that do not close": (form(SAID, text("image[", "x")), KIND),
    "names of nothing": (form(SAID, file("", ONE)), KIND),
    "no picture": (form(SAID), KIND),
    "no prompt": (form(file("image", ONE)), KIND),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_form_is_refused(gateway: Gateway, what: str) -> None:
    body, kind = BROKEN[what]
    answer = await posted(gateway, body, kind)
    error = answer.json()["error"]
    assert error["code"] in ("invalid_value", "invalid_image_file")
    expect_error(answer, 400, error["code"], error["param"])
    assert not gateway.script.runs


async def test_other_kinds_of_forms_are_not_read(gateway: Gateway) -> None:
    headers = {"origin": "http://127.0.0.1:8000"}
    for kind in ("application/x-www-form-urlencoded", "multipart/mixed; boundary=xyzzy", "text/plain"):
        answer = await gateway.http.post("/v1/images/edits", content=WHOLE, headers=headers | {"content-type": kind})
        expect_error(answer, 415, "unsupported_media_type")


async def test_limits_are_kept_while_a_form_is_read(root: Path) -> None:
    large = hollow("png", 64, 64, b"." * 70_000)
    bounds = {"max_image_bytes": 65_536, "max_upload_bytes": 1 << 20, "max_body_bytes": 65_536}
    async with running(root / "small", workers=1, **bounds) as gateway:
        assert (await posted(gateway, form(SAID, file("image", ONE)))).status_code == 200
        answer = await posted(gateway, form(SAID, file("image", ONE), file("mask", large), file("image", ONE)))
        expect_error(answer, 413, "payload_too_large", "mask")
        answer = await posted(gateway, form(SAID, file("image", ONE), file("image", large)))
        expect_error(answer, 413, "payload_too_large", "image[1]")

        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            yield form(SAID, file("image", ONE)).removesuffix(b"--\r\n") + CRLF
            while sent < 100 << 20:
                sent += len(large)
                yield file("image", large) + b"--xyzzy\r\n"

        expect_error(await posted(gateway, endless()), 413, "payload_too_large")
        assert sent < 2 << 20
        assert len(gateway.script.given) == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(WHOLE) - 1), cut=st.integers(0, 40), put=st.binary(max_size=12))
async def test_a_damaged_form_is_understood_or_refused(gateway: Gateway, at: int, cut: int, put: bytes) -> None:
    answer: httpx2.Response = await posted(gateway, WHOLE[:at] + put + WHOLE[at + cut :])
    assert answer.status_code in (200, 400), answer.text
    assert json.loads(answer.content).keys() >= ({"data"} if answer.status_code == 200 else {"error"})
