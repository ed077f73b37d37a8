"""Images by URL, fetched without being led inside: https to public addresses only, and every redirect checked anew.

What is parsed is what is checked is what is connected to: there is one parser and one resolution, and the connection
goes to an address that was looked at, while the certificate has to be the name's. httpx2 is imported on use.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from shared import logs
from shared.errors import BadInput, ReplicastError, TooLarge, UnsupportedOperation

if TYPE_CHECKING:
    import httpcore2
    import httpx2

Address = IPv4Address | IPv6Address
# The addresses of a host and port, as text.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_PORT = 443
_MOST_REDIRECTS = 3
_MOST_ADDRESSES = 4
_MOST_CHARACTERS = 4096
# At the same time, of all requests together: each may hold a whole image in memory.
_MOST_FETCHES = 8
_REDIRECTS = (301, 302, 303, 307, 308)
# Narrows what the parser gets and takes nothing from it: printable ASCII, no backslash, nothing before the host.
_SHAPE = re.compile(r"(?i:https)://[A-Za-z0-9._:\[\]-]+(?:[/?#][!-\[\]-~]*)?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# The last label begins with a letter: everything that some resolver takes for a number ends in a digit or in 0x...
_NAME = re.compile(rf"(?=.{{4,253}}$)(?:{_LABEL}\.)+[a-z][a-z0-9-]{{0,61}}[a-z0-9]")
# What is told of a refused address, a name that does not exist, a closed port and a wrong certificate: the same.
_NO = "The image at this URL cannot be fetched."
_EXPECTED = "expected the https:// URL of a public host, in ASCII, without a user and with no port but 443"

# Special, and yet global to Python: protocol assignments, relays of 6to4, and what a cloud answers its machines at.
_SPECIAL_4 = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
_UNICAST_6 = IPv6Network("2000::/3")
# Teredo and other protocol assignments, 6to4, documentation.
_SPECIAL_6 = tuple(map(IPv6Network, ("2001::/23", "2002::/16", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")

log = logs.get("fetch")


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, and not to this machine, its network or its cloud."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _UNICAST_6 and address.is_global and not any(address in special for special in _SPECIAL_6)
    return address.is_global and not address.is_multicast and not any(address in special for special in _SPECIAL_4)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a fetch may take: to connect, between two pieces, and in all."""

    connect_seconds: float = 5.0
    read_seconds: float = 10.0
    total_seconds: float = 20.0


class Fetcher:
    """Fetches images from the public internet, if that is `enabled`.

    `hosts`, if there are any, are all that is fetched from: each a name, or a domain with a dot before it for all below
    it. The rest are doors for tests; without `tls` the system's authorities are trusted.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        hosts: Sequence[str] = (),
        resolve: Resolve = resolve,
        public: Callable[[Address], bool] = is_public,
        ports: Sequence[int] = (_PORT,),
        tls: ssl.SSLContext | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._enabled = enabled
        self._hosts = tuple(host.lower() for host in hosts)
        self._resolve, self._public, self._ports, self._tls = resolve, public, ports, tls
        self._patience = patience or Patience()
        self._turns = asyncio.Semaphore(_MOST_FETCHES)

    async def fetch(self, url: str, most_bytes: int, *, param: str = "image_url") -> bytes:
        """What is at `url`, whatever it is called there. Raises BadInput, and TooLarge beyond `most_bytes`, which name
        `param`; no message tells what was found inside the network.
        """
        try:
            if not self._enabled:
                raise UnsupportedOperation("This server fetches no images by URL: send the image itself.")
            async with self._turns, asyncio.timeout(self._patience.total_seconds):
                self._tls = self._tls or await asyncio.to_thread(_trusted)
                return await self._follow(url, most_bytes)
        except ReplicastError as error:
            error.param = param
            raise
        except TimeoutError as error:
            raise BadInput(_NO, param=param) from error

    async def _follow(self, text: str, most_bytes: int) -> bytes:
        for _ in range(1 + _MOST_REDIRECTS):
            url = self._parse(text)
            found = await self._get(url, await self._addresses(url), most_bytes)
            if isinstance(found, bytes):
                return found
            text = _join(url, found)
        raise _refused("too many redirects")

    def _parse(self, text: str) -> httpx2.URL:
        import httpx2

        try:
            if len(text) > _MOST_CHARACTERS or not _SHAPE.fullmatch(text):
                raise httpx2.InvalidURL("odd")
            url = httpx2.URL(text)
        except httpx2.InvalidURL as error:
            raise BadInput(f"Invalid URL: {_EXPECTED}.") from error
        if url.scheme != "https" or not (_literal(url.host) or _NAME.fullmatch(url.host)):
            raise BadInput(f"Invalid URL: {_EXPECTED}.")
        if _port(url) not in self._ports:
            raise BadInput(f"Invalid URL: {_EXPECTED}.")
        if self._hosts and not any(_covers(word, url.host) for word in self._hosts):
            raise BadInput("This server fetches no images from this host.")
        return url

    async def _addresses(self, url: httpx2.URL) -> list[Address]:
        """Where the host is, once all of it was looked at. Raises BadInput if any of it is not public."""
        literal = _literal(url.host)
        try:
            names = () if literal else await self._resolve(url.host, _port(url))
            addresses = [literal] if literal else [ip_address(name) for name in names]
        except (OSError, ValueError) as error:
            raise _refused("no address", url.host) from error
        if not addresses or not all(map(self._public, addresses)):
            raise _refused("address", url.host)
        return addresses[:_MOST_ADDRESSES]

    async def _get(self, url: httpx2.URL, addresses: list[Address], most_bytes: int) -> bytes | str:
        """What is there, or where it says that it is. The first address that takes the connection is asked."""
        import httpcore2

        reason = ""
        try:
            for address in addresses:
                try:
                    return await self._ask(url, str(address), most_bytes)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                    reason = str(error)
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError) as error:
            reason = str(error)
        raise _refused(reason, url.host)

    async def _ask(self, url: httpx2.URL, address: str, most_bytes: int) -> bytes | str:
        import httpcore2

        port = _port(url)
        headers = [(b"host", url.netloc), (b"user-agent", b"replicast"), (b"accept", b"image/*")]
        headers += [(b"accept-encoding", b"identity")]
        patience = {"connect": self._patience.connect_seconds, "read": self._patience.read_seconds}
        there = httpcore2.URL(scheme="https", host=address, port=port, target=url.raw_path)
        extensions = {"sni_hostname": url.host, "timeout": patience | {"write": self._patience.read_seconds}}
        # A connection of its own, which knows of no proxy and no cookie, and is not there for the next name.
        async with httpcore2.AsyncHTTPConnection(there.origin, self._tls) as connection:  # noqa: SIM117
            async with connection.stream("GET", there, headers=headers, extensions=extensions) as response:
                if response.status in _REDIRECTS:
                    return _header(response, b"location")
                if response.status != 200:
                    raise _refused(f"status {response.status}", url.host)
                if _header(response, b"content-encoding") not in ("", "identity"):
                    raise _refused("compressed", url.host)
                return await _read(response, most_bytes)


async def _read(response: httpcore2.Response, most_bytes: int) -> bytes:
    too_large = TooLarge(f"The image at this URL is larger than {most_bytes} bytes.")
    declared = _header(response, b"content-length")
    # int() refuses more than some thousand digits.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > most_bytes):
        raise too_large
    pieces: list[bytes] = []
    size = 0
    async for piece in response.aiter_stream():
        size += len(piece)
        if size > most_bytes:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


def _header(response: httpcore2.Response, name: bytes) -> str:
    """The only header of this name, or nothing."""
    values = [value for key, value in response.headers if key.lower() == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _join(url: httpx2.URL, location: str) -> str:
    import httpx2

    try:
        return str(url.join(location))
    except (httpx2.InvalidURL, ValueError) as error:
        raise _refused("redirect", url.host) from error


def _port(url: httpx2.URL) -> int:
    return _PORT if url.port is None else url.port


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _covers(word: str, host: str) -> bool:
    return host.endswith(word) if word.startswith(".") else host == word


def _refused(reason: str, host: str = "") -> BadInput:
    """What the client is told, while the log has the reason."""
    log.info("fetch_refused", host=host, reason=reason)
    return BadInput(_NO)


def _trusted() -> ssl.SSLContext:
    import httpcore2
    import httpx2  # noqa: F401 - now, and not on the loop

    return httpcore2.default_ssl_context()
