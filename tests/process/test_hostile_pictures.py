"""Whatever a client sends, with a picture or in place of one: a live server refuses it in plain words and serves on."""

from __future__ import annotations

import base64
import json
import logging
import re
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2
import psutil
import pytest

from tests.flavours import FLAVOURS, PNG, chunk, data_of, header, of_size, picture, png, saved, scans, segment
from tests.photos import noise, told
from tests.photos import png as photo
from tests.server import Serve, Server, until
from worker.backends import stub

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
GOOD = photo(noise(0))
TELLTALE = re.compile(
    r"/(home|usr|tmp|work|root|opt|var|etc)/|ipc://|0x[0-9a-f]{6}|Traceback|PIL|pydantic|zlib|File \"|\.py\b"
)
log = logging.getLogger(__name__)
JSON = "application/json"
FORM = "multipart/form-data; boundary=xyzzy"


@dataclass(frozen=True)
class Attack:
    """A request that no server should do."""

    path: str
    body: bytes
    kind: str = JSON


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def generation(text: str) -> Attack:
    """A generation with this among its fields."""
    return Attack(GENERATE, f'{{"prompt": "x", {text}}}'.encode())


def editing(**said: object) -> Attack:
    body = {"prompt": "x", "response_format": "b64_json", "images": [{"image_url": url(GOOD)}]} | said
    return Attack(EDIT, json.dumps(body).encode())


def upload(data: bytes, name: str = "image", filename: str = "a.png", more: bytes = b"") -> bytes:
    head = f'--xyzzy\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode("utf-8", "surrogateescape") + data + b"\r\n" + more


PROMPT = b'--xyzzy\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
END = b"--xyzzy--\r\n"


def numbers() -> Iterator[tuple[str, Attack]]:
    """Every number at both sides of its bounds, and as what is no number of that kind."""
    beyond = {
        "n": ("0", "11", "-1", "1.5", "true"),
        "seed": ("-1", str(2**63), str(2**64), "1.5", "true", '"7"'),
        "steps": ("0", "1001", str(2**31), "4.0", "true"),
        "guidance": ("-0.001", "100.5", "1e308", "true", '"7"'),
        "guidance_scale": ("-1", "1e308"),
        "output_compression": ("-1", "101", "50.5", "false"),
        "partial_images": ("-1", "4", "true"),
        "width": ("0", "16384", str(2**31), "true"),
        "priority": ("-11", "11", "0.5"),
        "timeout_seconds": ("0", "-1", "86401", "true"),
    }
    for field, values in beyond.items():
        for value in (*values, "NaN", "Infinity", "1e400", "[]", "{}"):
            yield f"{field} {value}", generation(f'"{field}": {value}')
    for value in (0, -0.5, 1.001, True, "0.5", [0.5]):
        yield f"strength {value}", editing(strength=value)


def sentences() -> Iterator[tuple[str, Attack]]:
    """Bodies that are no request."""
    yield "a lone surrogate", generation('"user": "\\ud800"')
    yield "deep lists", generation('"x": ' + "[" * 50_000 + "]" * 50_000)
    yield "deep objects", Attack(EDIT, b'{"x":' * 100_000)
    yield "nothing but values", Attack(EDIT, b"[" + b"[]," * 5_000_000 + b"0]")
    yield "a number of a million digits", generation('"seed": ' + "9" * 1_000_000)
    yield "a prompt of a list", generation('"prompt": ["x"]')
    yield "an endless size", generation('"size": "' + "9" * 100_000 + 'x1"')
    yield "more work than there is", generation('"n": 10, "size": "2048x2048", "steps": 1000')
    yield "a body that is too large", Attack(GENERATE, b" " * (300 << 10))
    yield "no form", Attack(EDIT, b"x" * 1000, FORM)
    yield "a form without end", Attack(EDIT, upload(GOOD), FORM)
    yield "a form of a thousand fields", Attack(EDIT, PROMPT.replace(b"prompt", b"p") * 1000 + END, FORM)
    yield "a form of a hundred files", Attack(EDIT, PROMPT + upload(GOOD) * 100 + END, FORM)
    yield "a form of a file for a field", Attack(EDIT, PROMPT + upload(GOOD, "prompt") + END, FORM)
    yield "a form of beginnings of boundaries", Attack(EDIT, PROMPT + upload(b"\r\n--xyzz" * 200_000) + END, FORM)
    yield "a form of line ends", Attack(EDIT, PROMPT + upload(b"\r\n" * 500_000) + END, FORM)
    yield "a form of a long header", Attack(EDIT, b"--xyzzy\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n" + END, FORM)


def addresses() -> Iterator[tuple[str, Attack]]:
    """Places that a server might be led to."""
    for address in (
        "http://127.0.0.1:8000/livez",
        "http://169.254.169.254/latest/meta-data/",
        "https://localhost/x.png",
        "https://[::1]/x.png",
        "https://0x7f000001/x.png",
        "https://example.com@127.0.0.1/x.png",
        "HTTPS://127.0.0.1/",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "/etc/passwd",
        "gopher://127.0.0.1:6379/_INFO",
        "ftp://127.0.0.1/x.png",
        "data:text/html;base64," + base64.b64encode(b"<script>").decode(),
        "data:image/png," + "%00" * 99,
        "data:image/png;base64,!!!!",
        "data:image/png;base64",
        "data:" + "x" * 100_000,
        "",
    ):
        yield f"the address {address[:40]}", editing(images=[{"image_url": address}])
    yield "a mask from elsewhere", editing(mask={"image_url": "http://127.0.0.1/"})
    yield "an id of a file", editing(images=[{"file_id": "../../etc/passwd"}])
    yield "a picture of a list", editing(images=[[url(GOOD)]])
    yield "a picture of a number", editing(images=[7])
    yield "seventeen pictures", editing(images=[url(GOOD)] * 17)


BOMB = zlib.compress(bytes(50_000_000), 9)
WEBP = saved(picture("RGBA"), "WEBP", lossless=True, exif=b"")
CANVAS = struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2


def pictures() -> Iterator[tuple[str, bytes]]:
    """What is no picture, or more than one would want."""
    jpeg, progressive = FLAVOURS["jpeg RGB"], FLAVOURS["jpeg RGB progressive"]
    yield "nothing", b""
    yield "a GIF", saved(picture("P"), "GIF")
    yield "a TIFF", saved(picture(), "TIFF")
    yield "an EPS", saved(picture(), "EPS")
    yield "an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "HTML with a magic", PNG + b"<script>alert(1)</script>" * 99
    yield "a zip with a magic", b"\xff\xd8\xff" + b"PK\3\4" * 99
    yield "20000x20000 bits", PNG + header(20_000, 20_000, 1, 0) + data_of(20_000, 800)
    yield "2**31 by 2**31", PNG + header(2**31, 2**31)
    yield "a JPEG of 65535x65535", of_size(progressive, 65_535, 65_535)
    yield "a WebP of 2**24 by 2**24", b"RIFF\xff\xff\xff\0WEBPVP8X" + CANVAS + WEBP
    yield "seven pixels wide", png(7, 64, data_of(64, 7))
    yield "no pixels wide", png(0, 64)
    yield "a strip of 16384", png(16_384, 8)
    yield "moving", FLAVOURS["apng"]
    yield "a moving WebP", FLAVOURS["webp animated"]
    yield "half a PNG", GOOD[: len(GOOD) // 2]
    yield "half a JPEG", jpeg[:-200]
    yield "half a WebP", FLAVOURS["webp lossy"][:-200]
    yield "4096x4096 cut short", PNG + header(4096, 4096) + data_of(4096, 4096)[:-9000]
    yield "4096x4096 of nothing", png(4096, 4096)
    yield "another size inside", PNG + header(64, 64) + header(20_000, 20_000) + data_of(64, 64)
    yield "a bomb of text and no pixels", png(64, 64, chunk(b"zTXt", b"a\0\0" + BOMB), chunk(b"iCCP", b"a\0\0" + BOMB))
    yield "fifty thousand chunks", PNG + header(64, 64) + chunk(b"juNk", b"") * 50_000 + data_of(64, 64)
    yield "a million fill bytes", b"\xff\xd8" + b"\xff" * 1_000_000 + jpeg[2:]
    yield "a thousand scans", scans(1000)
    yield "a JPEG of Exif and no pixels", b"\xff\xd8" + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 200


TABLE: dict[str, Attack] = {
    **dict(numbers()),
    **dict(sentences()),
    **dict(addresses()),
    **{f"{what}, in JSON": editing(images=[url(data)]) for what, data in pictures()},
    **{f"{what}, as a mask": editing(mask=url(data)) for what, data in pictures()},
    **{f"{what}, in a form": Attack(EDIT, PROMPT + upload(data) + END, FORM) for what, data in pictures()},
    **{f"{what}, to vary": Attack(VARY, upload(data) + END, FORM) for what, data in pictures()},
}


@pytest.fixture(scope="module")
def server(serve_for_all: Serve) -> Server:
    """With one worker: all that is decoded is decoded in there."""
    return serve_for_all("--device", "stub:1", png_parameters="false")


def attack(server: Server, what: Attack) -> httpx2.Response:
    return server.http.post(what.path, content=what.body, headers={"content-type": what.kind})


def expect_refused(answer: httpx2.Response) -> None:
    """Its own fault, in the shape of all errors, and nothing of ours in the words."""
    assert 400 <= answer.status_code < 500, answer.text[:500]
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] in (
        "invalid_value",
        "invalid_json",
        "invalid_image_file",
        "unsupported_operation",
        "unsupported_size",
        "payload_too_large",
    )
    assert 0 < len(error["message"]) < 600
    assert not TELLTALE.search(error["message"]), error["message"]


def resident(server: Server) -> dict[str, int]:
    """Bytes that the gateway and each of its workers hold."""
    pids = {"gateway": server.pid, **server.workers()}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


def test_nothing_hostile_does_any_harm(server: Server) -> None:
    assert len(TABLE) >= 200
    # For what is only loaded when it is needed, and until a worker has the room that its largest pictures take.
    honest(server)
    for what in [*TABLE.values()] * 2:
        attack(server, what)
    before, workers = resident(server), server.workers()
    times: dict[str, float] = {}
    for name, what in TABLE.items():
        began = time.perf_counter()
        answer = attack(server, what)
        times[name] = time.perf_counter() - began
        try:
            expect_refused(answer)
        except AssertionError as error:
            pytest.fail(f"{name}: {error}")
    honest(server)
    after = resident(server)
    grown = {name: (after[name] - before[name]) >> 20 for name in before}
    # What one picture takes, which a worker may have given back before or not; there are hundreds of them.
    assert grown["gateway"] < 32, f"MiB more than the last time: {grown}"
    assert max(grown.values()) < 128, f"MiB more than the last time: {grown}"
    assert server.workers() == workers
    assert server.event("worker_lost") == server.event("task_restarted") == 0
    assert "Traceback" not in server.log
    assert "Warning" not in server.log
    assert server.metric("replicast_http_requests_total", status="500") == 0
    slowest = sorted(times.items(), key=lambda entry: -entry[1])[:5]
    # To be seen with --log-cli-level=INFO: no time decides a test.
    log.info("%d attacks; slowest %s; grown by MiB %s", len(times), slowest, grown)


def honest(server: Server) -> None:
    """The next honest request is served, with the pictures it brought."""
    [drawn] = server.draw(prompt="still here", seed=3)
    assert stub.read_back(drawn)["seed"] == 3
    answer = attack(server, editing())
    assert answer.status_code == 200, answer.text
    made = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert stub.read_back(made)["images"] == told(noise(0))


NAMES = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x.png",
    "a\\0.png",
    ".",
    "",
    "a" * 4000,
    "%2e%2e%2fx",
    "con.png",
]


@pytest.mark.parametrize("name", NAMES, ids=[name[:12] or "empty" for name in NAMES])
def test_the_name_of_a_file_leads_nowhere(server: Server, name: str) -> None:
    files = sorted(path for path in server.data_dir.rglob("*"))
    answer = attack(server, Attack(EDIT, PROMPT + upload(GOOD, filename=name) + END, FORM))
    assert answer.status_code == 200, answer.text
    assert sorted(path for path in server.data_dir.rglob("*")) == files


def test_many_at_once_leave_room_for_who_is_honest(server: Server) -> None:
    """Those that take longest, from many clients at the same time."""
    worst = [TABLE[name] for name in TABLE if "4096x4096" in name or "nothing but values" in name]
    with ThreadPoolExecutor(8) as crowd:
        refused = [crowd.submit(attack, server, what) for what in worst * 3]
        honest(server)
        for each in refused:
            expect_refused(each.result(60.0))
    until(lambda: set(server.jobs().values()) == {0}, "nothing of it is left")
    honest(server)
