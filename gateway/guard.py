"""The gate before every route: for whom a request was meant, and which page sent it. Keys are asked for further in.

A page in a browser on this machine can reach us as its user can. Its own name is no name of ours, even when it makes
that name point here; what it sends from its own origin says so; so neither gets past.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.errors import told
from shared.errors import BadInput, Misdirected, OriginRefused, ReplicastError

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,255}))(?::([0-9]{0,5}))?")
_PORTS = {"http": "80", "https": "443"}
_KEY = re.compile(rb"(?:^|&)(api[_-]?key|key|token|access[_-]?token)=", re.IGNORECASE)
_EXPOSED = ("x-request-id", "openai-processing-ms", "server-timing", "retry-after", "x-should-retry")

_ADVICE = "the operator can allow it with --public-url or allowed_hosts"


class Guard:
    """Passes on what names one of `hosts`, from no page or from one of ours: `own` or `origins`.

    `hosts` are names, `*.name` for all below one, or `*`; an address in numbers is always taken, since only a name can
    be made to point here. `origins` are other sites whose pages may ask; they are answered as CORS wants it. `own` is
    the origin of the page where it is not simply the address that the browser asked.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], origins: Iterable[str] = (), own: str = "") -> None:
        named = {host.lower().rstrip(".") for host in hosts}
        self._any = "*" in named
        self._hosts = frozenset(named)
        self._below = tuple(host.removeprefix("*") for host in named if host.startswith("*."))
        self._origins, self._own = frozenset(origins), own
        self._app = app
        self._shared = CORSMiddleware(
            app,
            allow_origins=tuple(origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )
        # The same few names, again and again.
        self._is_ours = lru_cache(maxsize=256)(self._serves)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            app = self._way_in(scope)
        except ReplicastError as error:
            await told(scope, error)(scope, receive, send)
            return
        await app(scope, receive, send)

    def _way_in(self, scope: Scope) -> ASGIApp:
        hosts, origins, crossed = [], [], False
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origins.append(value)
            elif name == b"sec-fetch-site":
                crossed = crossed or value.strip().lower() == b"cross-site"
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise Misdirected(f"This server does not answer to the name in the Host header; {_ADVICE}.")
        app = self._app
        if origins:
            app = self._way_of(origins, hosts[0])
        elif crossed and scope["method"] not in ("GET", "HEAD"):
            raise OriginRefused("A page of another site may not ask this.")
        if scope["query_string"] and (found := _KEY.search(scope["query_string"])):
            # Addresses are kept in logs and histories: refused, so that nobody gets used to it.
            message = "Send the API key in the Authorization header: an address is no place for it."
            raise BadInput(message, param=found[1].decode())
        return app

    def _way_of(self, origins: list[bytes], host: bytes) -> ASGIApp:
        origin = origins[0].decode("latin-1") if len(origins) == 1 else ""
        if origin in self._origins:
            return self._shared
        if origin and (origin == self._own or _same(origin, host.decode("latin-1"))):
            return self._app
        raise OriginRefused("Pages of this origin may not ask; the operator can allow it with allowed_origins.")

    def _serves(self, host: bytes) -> bool:
        parsed = _split(host.decode("latin-1"))
        if parsed is None:
            return False
        name = parsed[0]
        return self._any or name in self._hosts or name.endswith(self._below) or _is_address(name)


def _split(authority: str) -> tuple[str, str] | None:
    """The host, in lower case and without a dot at its end, and the port of `host:port`; None if it is neither."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None or (found[1] and not (":" in found[1] and _is_address(found[1]))):
        return None
    host = found[1] or found[2].removesuffix(".")
    return (host.lower(), found[3] or "") if host else None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _same(origin: str, host: str) -> bool:
    """Whether this is the origin of a page that was loaded from `host`; the scheme may be that of a proxy before us."""
    scheme, _, authority = origin.partition("://")
    if scheme not in _PORTS:
        return False
    theirs, ours = _split(authority), _split(host)
    if theirs is None or ours is None or theirs[0] != ours[0]:
        return False
    return (theirs[1] or _PORTS[scheme]) == (ours[1] or _PORTS[scheme])
