"""Fetching by URL: what is refused without a connection, what a redirect or a resolver cannot change, and what is read.

A canary listens on loopback, on the very port that the hostile URLs name: it must never hear anything.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme

from gateway.fetch import Fetcher, Patience, is_public, resolve
from shared.errors import BadInput, ReplicastError, TooLarge, UnsupportedOperation

# Quickly made, since it trusts nobody.
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
NO = "The image at this URL cannot be fetched."
# What each name leads to; every other one leads to the canary.
NAMES = {
    "metadata.google.internal": ["169.254.169.254"],
    "one-of-two.example": ["93.184.215.14", "10.0.0.1"],
    "two-of-two.example": ["10.0.0.1", "93.184.215.14"],
    "mapped.example": ["::ffff:10.0.0.1"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "6to4.example": ["2002:7f00:1::"],
    "local.example": ["fe80::1%lo"],
    "unique-local.example": ["fd00:ec2::254"],
    "nothing.example": [],
    "nonsense.example": ["not an address"],
}
LINES = Path(__file__).with_name("hostile_urls.txt").read_text(encoding="utf-8").splitlines()
HOSTILE = [line for line in LINES if line and not line.startswith("#")]
ODD = [
    "https://exam\u200bple.com:{}/",
    "https://ex\u202eample.com:{}/",
    "",
    " ",
    "https://127.0.0.1:{}/ x",
    " https://127.0.0.1:{}/",
    "https://127.0.0.1:{}/\n",
    "https://127.0.0.1 :{}/",
    "https://127.0.0.1:{}/\r\nhost: example.com",
    "https://127.0.0.1:{}/%0d%0aX:y\r\n\r\nGET / HTTP/1.1",
    "https://example.com\t.127.0.0.1:{}/",
    "ht\ntps://127.0.0.1:{}/",
    "https://127.0.0.1\0.example.com:{}/",
    "https://127.0.0.1:{}/\x7f",
    "\ufeffhttps://127.0.0.1:{}/",
    "https://127.0.0.1:{}/\ud800",
    "https://" + "a." * 130 + "example:{}/",
    "https://" + "a" * 64 + ".example:{}/",
    "https://rebound.example:{}/" + "a" * 5000,
    "https://" + "1" * 5000 + ":{}/",
    "https://127.0.0.1:" + "9" * 5000,
    "[" * 3000,
]


@dataclass
class Canary:
    port: int = 0
    heard: int = 0


@pytest_asyncio.fixture
async def canary() -> AsyncIterator[Canary]:
    """Listens on 127.0.0.1."""
    canary = Canary()

    async def hear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        canary.heard += 1
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1")
    async with server:
        canary.port = server.sockets[0].getsockname()[1]
        yield canary


async def names(host: str, port: int) -> Sequence[str]:
    """What the system says of numbers and of itself, and above for all else: nothing here asks the network."""
    if host in NAMES:
        return NAMES[host]
    try:
        numbers = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)
    except OSError:
        return await resolve(host, port) if host == "localhost" else ["127.0.0.1"]
    return [str(address[0]) for *_, address in numbers]


@pytest.mark.parametrize("url", [*HOSTILE, *ODD], ids=lambda url: url[:48].encode("unicode_escape").decode() or "empty")
async def test_it_is_refused_at_once_and_nothing_hears_of_it(canary: Canary, url: str) -> None:
    assert len(HOSTILE) > 80
    fetcher = Fetcher(enabled=True, resolve=names, ports=(443, canary.port), tls=TLS)
    async with asyncio.timeout(2):
        with pytest.raises(BadInput) as refused:
            await fetcher.fetch(url.replace("{}", str(canary.port)), 1000, param="mask")
    assert refused.value.message == NO or refused.value.message.startswith("Invalid URL: expected the https://")
    assert refused.value.param == "mask"
    assert canary.heard == 0


async def test_the_canary_hears_what_is_let_through(canary: Canary) -> None:
    """So that its silence above means something: only the look at the address kept these from it."""
    fetcher = Fetcher(enabled=True, resolve=names, ports=(canary.port,), tls=TLS, public=lambda _: True)
    for host in ("127.0.0.1", "rebound.example", "127.0.0.1.nip.example"):
        with pytest.raises(BadInput, match=NO):
            await fetcher.fetch(f"https://{host}:{canary.port}/", 1000)
    assert canary.heard == 3


async def test_it_is_off_unless_it_is_asked_for(canary: Canary) -> None:
    async def unasked(host: str, port: int) -> Sequence[str]:
        pytest.fail("a name was looked up")

    fetcher = Fetcher(enabled=False, resolve=unasked, ports=(canary.port,), public=lambda _: True)
    with pytest.raises(UnsupportedOperation, match="fetches no images"):
        await fetcher.fetch(f"https://127.0.0.1:{canary.port}/", 1000)
    assert canary.heard == 0


@pytest.mark.parametrize("port", [0, 1, 22, 80, 444, 6379, 8443])
async def test_no_other_port_is_asked(port: int) -> None:
    with pytest.raises(BadInput, match="no port but 443"):
        await Fetcher(enabled=True, resolve=names, public=lambda _: True).fetch(f"https://x.example:{port}/", 1000)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.215.14",
        "1.1.1.1",
        "2606:4700::6810:84e5",
        "2a00:1450::1",
        "64:ff9b::808:808",
        "::ffff:8.8.8.8",
    ],
)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *(
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
        ),
        *(
            "172.16.0.1",
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
        ),
        *(
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.250",
        ),
        *(
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
        ),
        *(
            "::",
            "::1",
            "::7f00:1",
            "::ffff:10.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::a00:1",
        ),
        *(
            "64:ff9b::7f00:1",
            "64:ff9b:1::808:808",
            "100::1",
            "2001::1",
            "2001:0:808:808::",
            "2001:10::1",
        ),
        *(
            "2001:20::1",
            "2001:db8::1",
            "2002:808:808::",
            "2002:a00:1::",
            "3fff::1",
            "5f00::1",
        ),
        *(
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fe80::1%lo",
            "fec0::1",
            "ff02::1",
        ),
        *("ff0e::1",),
    ],
)
def test_any_other_is_not(address: str) -> None:
    assert not is_public(ip_address(address))


# A server that is there


@dataclass
class Web:
    """An https server on 127.0.0.2 for every name below .example; `answers` are its pages, each whole from its head."""

    port: int
    tls: ssl.SSLContext
    answers: dict[str, bytes] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    # What the next names lead to; then it is 127.0.0.2 again.
    flips: list[list[str]] = field(default_factory=list)
    # Never set: an answer that ends in "..." goes on when it is.
    never: asyncio.Event = field(default_factory=asyncio.Event)

    def fetcher(self, **changed: Any) -> Fetcher:
        """One for which this server is public and the rest of this machine is not."""
        mine = ip_address("127.0.0.2")
        doors = {"resolve": self.resolve, "public": lambda address: address == mine or is_public(address)}
        return Fetcher(**{"enabled": True, "ports": (self.port,), "tls": self.tls, **doors, **changed})

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        return self.flips.pop(0) if self.flips else ["127.0.0.2"]

    def url(self, path: str, host: str = "pictures.example") -> str:
        return f"https://{host}:{self.port}{path}"


def page(content: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def moved(to: str, status: str = "302 Found") -> bytes:
    return page(b"", f"location: {to}", status=status)


@pytest_asyncio.fixture
async def web(canary: Canary) -> AsyncIterator[Web]:
    if sys.platform != "linux":
        pytest.skip("only Linux has 127.0.0.2 without being told")
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("pictures.example", "other.example").configure_cert(ours)
    authority.configure_trust(theirs)
    web = Web(canary.port, theirs)
    ours.sni_callback = lambda _, name, __: web.names.append(name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            web.heads.append(head)
            content = web.answers.get(head.split()[1], page(b"", status="404 Not Found"))
            writer.write(content.removesuffix(b"..."))
            await writer.drain()
            if content.endswith(b"..."):
                await web.never.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    # The same port as the canary's: where a name leads is all that keeps them apart.
    server = await asyncio.start_server(answer, "127.0.0.2", canary.port, ssl=ours)
    yield web
    web.never.set()
    server.close()
    await server.wait_closed()


async def refused(fetching: Awaitable[bytes], cls: type[ReplicastError] = BadInput) -> str:
    with pytest.raises(ReplicastError) as error:
        await fetching
    assert type(error.value) is cls
    assert error.value.param == "image_url"
    return error.value.message


async def test_a_picture_is_fetched_by_its_name_from_the_address_that_was_looked_at(web: Web, canary: Canary) -> None:
    web.answers["/a.png?b=c%20d"] = page(b"picture", "content-type: text/html", "set-cookie: a=b")
    assert await web.fetcher().fetch(web.url("/a.png?b=c%20d#e"), 7) == b"picture"
    (head,) = web.heads
    first, *lines = head.strip().split("\r\n")
    assert first == "GET /a.png?b=c%20d HTTP/1.1"
    assert sorted(lines) == [
        "accept-encoding: identity",
        "accept: image/*",
        f"host: pictures.example:{web.port}",
        "user-agent: replicast",
    ]
    assert web.names == ["pictures.example"]
    assert web.looked_up == ["pictures.example"]
    assert canary.heard == 0


async def test_the_certificate_has_to_be_the_names(web: Web) -> None:
    web.answers["/"] = page(b"picture")
    assert await refused(web.fetcher().fetch(web.url("/", "stranger.example"), 100)) == NO
    assert await refused(web.fetcher(tls=ssl.create_default_context()).fetch(web.url("/"), 100)) == NO
    assert web.heads == []


async def test_no_proxy_of_the_environment_is_asked(web: Web, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    web.answers["/"] = page(b"picture")
    assert await web.fetcher().fetch(web.url("/"), 100) == b"picture"
    assert canary.heard == 0


async def test_a_name_that_changes_where_it_leads_changes_nothing(web: Web, canary: Canary) -> None:
    web.answers["/"] = page(b"picture")
    web.flips = [["127.0.0.2"], ["127.0.0.1"]]
    fetcher = web.fetcher()
    assert await fetcher.fetch(web.url("/"), 100) == b"picture"
    assert web.looked_up == ["pictures.example"]
    assert await refused(fetcher.fetch(web.url("/"), 100)) == NO
    assert canary.heard == 0


async def test_the_next_address_is_asked_where_the_first_takes_no_connection(web: Web) -> None:
    web.answers["/"] = page(b"picture")
    # Nothing listens there.
    web.flips = [["127.0.0.3", "127.0.0.2"]]
    fetcher = web.fetcher(public=lambda _: True)
    assert await fetcher.fetch(web.url("/"), 100) == b"picture"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_followed_and_looked_at_anew(web: Web, status: str) -> None:
    web.answers = {
        "/a": moved("/b", status),
        "/b": moved(web.url("/c", "other.example"), status),
        "/c": moved("d?e", status),
        "/d?e": page(b"picture"),
    }
    assert await web.fetcher().fetch(web.url("/a"), 100) == b"picture"
    assert web.looked_up == ["pictures.example"] * 2 + ["other.example"] * 2
    assert [head.split("\r\n")[1] for head in web.heads[2:]] == [f"host: other.example:{web.port}"] * 2


@pytest.mark.parametrize(
    "to",
    [
        "https://127.0.0.1:{}/",
        "https://127.1:{}/",
        "https://[::1]:{}/",
        "//127.0.0.1:{}/",
        "//localhost:{}/",
        "https://inside.example:{}/",
        "//user@pictures.example:{}/",
        "\\\\127.0.0.1:{}\\",
        "/\\127.0.0.1:{}/",
        "http://pictures.example:{}/",
        "https://pictures.example:22/",
        "file:///etc/passwd",
        "data:image/png;base64,aGVu",
        "gopher://127.0.0.1:{}/",
        "https://",
        "//",
        "",
        "https://pictures.example:{}/\xe9",
        "https://[",
        "://",
    ],
)
async def test_a_redirect_leads_nowhere_else(web: Web, canary: Canary, to: str) -> None:
    web.answers["/"] = moved(to.replace("{}", str(canary.port)))
    web.flips = [["127.0.0.2"], ["127.0.0.1"]]
    message = await refused(web.fetcher().fetch(web.url("/"), 100))
    assert message == NO or message.startswith("Invalid URL")
    assert canary.heard == 0
    assert len(web.heads) == 1


async def test_a_redirect_without_one_place_to_go_is_none(web: Web) -> None:
    for headers in ((), ("location: /a", "location: /b")):
        web.answers["/"] = page(b"", *headers, status="302 Found")
        assert await refused(web.fetcher().fetch(web.url("/"), 100)) == NO


async def test_redirects_come_to_an_end(web: Web) -> None:
    web.answers["/"] = moved("/")
    assert await refused(web.fetcher().fetch(web.url("/"), 100)) == NO
    assert len(web.heads) == 4


# What is read


@pytest.mark.parametrize(
    ("answer", "cls"),
    [
        (page(b"x" * 101), TooLarge),
        (page(b"", length=10**19), TooLarge),
        (page(b"", length=10**30), BadInput),
        (page(b"x" * 50, length=10**12), TooLarge),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"a\r\n0123456789\r\n" * 11 + b"0\r\n\r\n",
            TooLarge,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, TooLarge),
        (page(b"x", "content-encoding: gzip"), BadInput),
        (page(b"x", "content-encoding: br"), BadInput),
        (page(b"x", length=50), BadInput),
        (page(b"x", status="206 Partial"), BadInput),
        (page(b"x", status="401 Unauthorized"), BadInput),
        (page(b"x", status="500 Mistake"), BadInput),
        (page(b"x", "a: " + "b" * 200_000), BadInput),
        (b"SSH-2.0-OpenSSH\r\n\r\n", BadInput),
        (b"", BadInput),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nx", BadInput),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n", BadInput),
    ],
)
async def test_what_is_no_picture_of_this_size_is_refused(web: Web, answer: bytes, cls: type[ReplicastError]) -> None:
    web.answers["/"] = answer
    message = await refused(web.fetcher().fetch(web.url("/"), 100), cls)
    assert message == (NO if cls is BadInput else "The image at this URL is larger than 100 bytes.")


@pytest.mark.parametrize("answer", [b"...", b"HTTP/1.1 200 OK\r\n...", page(b"x...", length=50)])
@pytest.mark.parametrize("patience", [Patience(total_seconds=0.3), Patience(read_seconds=0.3)])
async def test_a_server_that_says_no_more_is_left(web: Web, answer: bytes, patience: Patience) -> None:
    web.answers["/"] = answer
    assert await refused(web.fetcher(patience=patience).fetch(web.url("/"), 100)) == NO


async def test_a_name_that_is_never_found_is_left(web: Web) -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await web.never.wait()
        return []

    patience = Patience(total_seconds=0.2)
    assert await refused(web.fetcher(resolve=never, patience=patience).fetch(web.url("/"), 100)) == NO


# Only from these hosts


@pytest.mark.parametrize(
    ("hosts", "host", "taken"),
    [
        (("pictures.example",), "pictures.example", True),
        (("Pictures.Example",), "PICTURES.example", True),
        (("other.example", "pictures.example"), "pictures.example", True),
        ((".example",), "pictures.example", True),
        (("example",), "pictures.example", False),
        ((".pictures.example",), "pictures.example", False),
        (("tures.example",), "pictures.example", False),
        (("other.example",), "pictures.example", False),
    ],
)
async def test_only_named_hosts_are_asked(web: Web, hosts: Sequence[str], host: str, taken: bool) -> None:
    web.answers["/"] = page(b"picture")
    fetching = web.fetcher(hosts=hosts).fetch(web.url("/", host), 100)
    if taken:
        assert await fetching == b"picture"
    else:
        assert await refused(fetching) == "This server fetches no images from this host."
        assert web.looked_up == []


async def test_a_redirect_to_a_host_that_is_not_named_is_not_followed(web: Web) -> None:
    web.answers["/"] = moved(web.url("/", "other.example"))
    await refused(web.fetcher(hosts=("pictures.example",)).fetch(web.url("/"), 100))
    assert web.looked_up == ["pictures.example"]
