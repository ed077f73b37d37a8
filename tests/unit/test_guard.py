"""The gate alone: which Host headers it takes, which Origins, and what it says to each of them."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.guard import Guard

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        code: str = orjson.loads(self.body)["error"]["code"]
        return code


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b""})


GUARD = Guard(
    inside,
    hosts=("localhost", "Machine.Local.", "img.example", "*.lab.example", "0.0.0.0", ""),
    origins=("https://app.example", "http://app.example:3000", "chrome-extension://abcdef"),
    own="https://public.example",
)


async def ask(*headers: tuple[str, str], method: str = "POST", query: bytes = b"", guard: Guard = GUARD) -> Answer:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the body is read")

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    await guard({"type": "http", "method": method, "path": "/", "headers": raw, "query_string": query}, receive, send)
    told = {name.decode(): value.decode() for name, value in sent[0].get("headers", [])}
    return Answer(sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:]))


HOSTS = {
    "localhost": True,
    "localhost:8000": True,
    "LOCALHOST:8000": True,
    "localhost.:8000": True,
    "localhost:": True,
    "machine.local": True,
    "MACHINE.local.": True,
    "img.example": True,
    "img.example:443": True,
    "a.lab.example": True,
    "a.b.LAB.example:1": True,
    "127.0.0.1": True,
    "127.0.0.1:8000": True,
    "10.1.2.3:80": True,
    "8.8.8.8": True,
    "[::1]": True,
    "[::1]:8000": True,
    "[2001:DB8::1]:8000": True,
    "[::ffff:127.0.0.1]:8000": True,
    "0.0.0.0:8000": True,
    "evil.test": False,
    "evil.test:8000": False,
    "lab.example": False,
    "xlab.example": False,
    "img.example.evil.test": False,
    "evil.test.": False,
    "img.example..": False,
    "localhost.evil.test": False,
    "sub.localhost": False,
    "127.0.0.1.evil.test": False,
    "127.1": False,
    "2130706433": False,
    "0x7f000001": False,
    "0177.0.0.1": False,
    "127.0.0.1.": True,
    "::1": False,
    "::1:8000": False,
    "[::1": False,
    "[127.0.0.1]": False,
    "[localhost]": False,
    "[fe80::1%25eth0]": False,
    "": False,
    ".": False,
    ":8000": False,
    " localhost": False,
    "localhost ": False,
    "localhost:8000 ": False,
    "localhost:http": False,
    "localhost:-1": False,
    "localhost:123456": False,
    "localhost:80:80": False,
    "localhost,evil.test": False,
    "localhost, localhost": False,
    "user@localhost": False,
    "http://localhost": False,
    "localhost/": False,
    "localhost/evil": False,
    "localhost?x": False,
    "localhost#x": False,
    "local\thost": False,
    "localhost\n": False,
    "localhost\x00": False,
    "lócalhost": False,
    "*": False,
    "x" * 300: False,
}


@pytest.mark.parametrize("host", HOSTS)
async def test_a_host_is_taken_or_refused_as_written_here(host: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = await ask(("host", host), method=method)
        assert answer.status == (299 if HOSTS[host] else 421)
        if answer.status == 421:
            assert answer.code == "misdirected_request"
            assert answer.headers["content-type"] == "application/json"


async def test_a_request_names_one_host() -> None:
    assert (await ask()).status == 421
    assert (await ask(("host", "localhost"), ("host", "localhost"))).status == 421
    assert (await ask(("host", "localhost"), ("host", "evil.test"))).status == 421
    assert (await ask(("x-forwarded-host", "localhost"))).status == 421
    assert (await ask(("host", "evil.test"), ("x-forwarded-host", "localhost"))).status == 421


async def test_a_star_takes_every_name_and_still_no_nonsense() -> None:
    guard = Guard(inside, hosts=("*",))
    for host, status in (("evil.test:8000", 299), ("[::1]", 299), ("a b", 421), ("", 421)):
        assert (await ask(("host", host), guard=guard)).status == status


# (host, origin): let in, let in as CORS has it, or refused
IN, SHARED, OUT = "in", "shared", "out"
ORIGINS = [
    ("localhost:8000", "http://localhost:8000", IN),
    ("localhost:8000", "https://localhost:8000", IN),
    ("LOCALHOST:8000", "http://localhost:8000", IN),
    ("localhost", "http://localhost", IN),
    ("localhost:80", "http://localhost", IN),
    ("localhost", "https://localhost:443", IN),
    ("img.example", "https://img.example", IN),
    ("img.example:443", "https://img.example", IN),
    ("[::1]:8000", "http://[::1]:8000", IN),
    ("127.0.0.1:8000", "http://127.0.0.1:8000", IN),
    ("127.0.0.1:8000", "https://public.example", IN),
    ("localhost:8000", "https://app.example", SHARED),
    ("localhost:8000", "http://app.example:3000", SHARED),
    ("localhost:8000", "chrome-extension://abcdef", SHARED),
    ("localhost:8000", "http://localhost", OUT),
    ("localhost:8000", "http://localhost:3000", OUT),
    ("localhost:8000", "http://127.0.0.1:8000", OUT),
    ("localhost", "https://localhost:80", OUT),
    ("localhost:443", "http://localhost", OUT),
    ("127.0.0.1:8000", "http://evil.test", OUT),
    ("127.0.0.1:8000", "http://evil.test:8000", OUT),
    ("127.0.0.1:8000", "http://public.example", OUT),
    ("127.0.0.1:8000", "https://public.example:8443", OUT),
    ("127.0.0.1:8000", "https://public.example.evil.test", OUT),
    ("127.0.0.1:8000", "http://app.example", OUT),
    ("127.0.0.1:8000", "https://app.example:443", OUT),
    ("127.0.0.1:8000", "https://app.example/", OUT),
    ("127.0.0.1:8000", "HTTPS://APP.EXAMPLE", OUT),
    ("127.0.0.1:8000", "null", OUT),
    ("127.0.0.1:8000", "", OUT),
    ("127.0.0.1:8000", "://", OUT),
    ("127.0.0.1:8000", "*", OUT),
    ("127.0.0.1:8000", "file://", OUT),
    ("127.0.0.1:8000", "127.0.0.1:8000", OUT),
    ("127.0.0.1:8000", "ftp://127.0.0.1:8000", OUT),
    ("127.0.0.1:8000", "chrome-extension://127.0.0.1:8000", OUT),
    ("127.0.0.1:8000", "http://127.0.0.1:8000/", OUT),
    ("127.0.0.1:8000", "http://127.0.0.1:8000, http://evil.test", OUT),
    ("127.0.0.1:8000", "http://evil.test http://127.0.0.1:8000", OUT),
    ("127.0.0.1:8000", "http://evil.test@127.0.0.1:8000", OUT),
    ("127.0.0.1:8000", "http://127.0.0.1:8000\x00", OUT),
    ("127.0.0.1:8000", "http://127.0.0.1:8000é", OUT),
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(("host", "origin", "expected"), ORIGINS)
async def test_an_origin_is_taken_or_refused_as_written_here(
    host: str, origin: str, expected: str, method: str
) -> None:
    answer = await ask(("host", host), ("origin", origin), ("sec-fetch-site", "cross-site"), method=method)
    assert answer.status == (403 if expected == OUT else 299)
    if expected == OUT:
        assert answer.code == "origin_not_allowed"
    assert answer.headers.get("access-control-allow-origin") == (origin if expected == SHARED else None)
    assert "access-control-allow-credentials" not in answer.headers


async def test_two_origins_are_none() -> None:
    ours = ("origin", "http://localhost:8000")
    assert (await ask(("host", "localhost:8000"), ours)).status == 299
    assert (await ask(("host", "localhost:8000"), ours, ours)).status == 403
    assert (await ask(("host", "localhost:8000"), ours, ("origin", "https://app.example"))).status == 403


@pytest.mark.parametrize(
    ("method", "site", "status"),
    [
        ("GET", "cross-site", 299),
        ("HEAD", "cross-site", 299),
        ("POST", "cross-site", 403),
        ("POST", "Cross-Site", 403),
        ("PUT", "cross-site", 403),
        ("DELETE", "cross-site", 403),
        ("OPTIONS", "cross-site", 403),
        ("POST", "same-origin", 299),
        ("POST", "same-site", 299),
        ("POST", "none", 299),
    ],
)
async def test_what_another_site_sends_without_saying_which_is_refused(method: str, site: str, status: int) -> None:
    here = ("host", "localhost")
    assert (await ask(here, ("sec-fetch-site", site), method=method)).status == status
    twice = (("sec-fetch-site", site), ("sec-fetch-site", "none"))
    assert (await ask(here, *twice, method=method)).status == status


async def test_a_browser_that_asks_first_is_told_what_an_allowed_page_may_do() -> None:
    headers = [
        ("host", "localhost:8000"),
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization, content-type, x-stainless-lang"),
        ("access-control-request-private-network", "true"),
    ]
    answer = await ask(*headers, method="OPTIONS")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == headers[3][1]
    assert answer.headers["access-control-allow-private-network"] == "true"
    headers[1] = ("origin", "https://evil.test")
    refused = await ask(*headers, method="OPTIONS")
    assert refused.status == 403
    assert not [name for name in refused.headers if name.startswith("access-control")]


async def test_an_allowed_page_may_read_what_a_client_needs() -> None:
    answer = await ask(("host", "localhost:8000"), ("origin", "https://app.example"))
    assert {"x-request-id", "retry-after"} <= set(answer.headers["access-control-expose-headers"].split(", "))
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (b"key=x", 400),
        (b"a=b&Token=x", 400),
        (b"api_key=", 400),
        (b"access_token=x&a=b", 400),
        (b"", 299),
        (b"monkey=x", 299),
        (b"a=key=x", 299),
        (b"key", 299),
        (b"&".join([b"a"] * 30_000), 299),
    ],
)
async def test_a_key_in_the_address_is_refused(query: bytes, status: int) -> None:
    answer = await ask(("host", "localhost"), query=query)
    assert answer.status == status
    if status == 400:
        assert answer.code == "invalid_value"
