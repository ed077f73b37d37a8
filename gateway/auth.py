"""Who asks: the caller behind an Authorization header, by the keys as they are now, and what each caller may do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from gateway.keys import Key, KeyFile, Role, may
from gateway.rates import Rates
from shared import logs
from shared.errors import ConfigError, InvalidKey, RateLimited, WrongRole

TRIES_PER_MINUTE = 20
# Of the digest, as an index: nobody can steer what SHA-256 makes of a guess.
_INDEX_BYTES = 8
_NEVER = (0, 0, 0)

log = logs.get("auth")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: a key, or without one an address. `account` is what their limits are counted under."""

    key_id: str | None
    name: str
    role: Role
    account: str
    max_requests: int | None = None
    images_per_minute: int | None = None


class Auth:
    """Knows a caller by the key. The file is looked at for each request: a change of it holds from the next one on.

    Before the first key is made everybody may do everything. From then on a request needs one, also when the last is
    revoked: a leaked key that is taken away must not leave its holder with more than it gave.
    """

    def __init__(self, keys: KeyFile, rates: Rates, *, allow_anonymous: bool) -> None:
        self._file, self._rates, self._allow_anonymous = keys, rates, allow_anonymous
        self._path = str(keys.path)
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        self._seen = self._unreadable = _NEVER
        self.needs_keys = False
        self._look(first=True)

    def caller(self, authorization: list[bytes], address: str) -> Caller:
        """Who sent these Authorization headers from this address. Raises InvalidKey, or RateLimited after many tries.

        A right key is taken however many wrong ones came before it: whoever shares its address cannot lock it out.
        """
        self._look()
        if not self.needs_keys:
            return Caller(None, "anonymous", Role.ADMIN, neighbourhood(address))
        secret = _secret(authorization)
        if secret is None:
            if self._allow_anonymous:
                return Caller(None, "anonymous", Role.INFERENCE, neighbourhood(address))
            raise InvalidKey("An API key is needed: send it as 'Authorization: Bearer KEY'.")
        digest = hashlib.sha256(secret).digest()
        known, caller = self._callers.get(digest[:_INDEX_BYTES], (b"", None))
        if hmac.compare_digest(known, digest) and caller is not None:
            return caller
        wait = self._rates.strike(f"tries {neighbourhood(address)}", TRIES_PER_MINUTE)
        if wait is not None:
            raise RateLimited("Too many wrong API keys came from this address.", retry_after_seconds=wait)
        raise InvalidKey("The API key is not valid.")

    def admit(self, authorization: list[bytes], address: str, need: Role) -> Caller:
        """As `caller`, for a route that needs this role. Raises WrongRole for a key of another."""
        caller = self.caller(authorization, address)
        if may(caller.role, need):
            return caller
        message = f"This needs an API key of the role '{need.value}'."
        raise InvalidKey(message) if caller.key_id is None else WrongRole(message)

    def _look(self, *, first: bool = False) -> None:
        try:
            found = os.stat(self._path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            seen = _NEVER
        except OSError:
            # What cannot be looked at now has not changed; at the start, reading it says what is wrong.
            seen = self._seen
        if seen == self._seen and not first:
            return
        try:
            keys = self._file.read()
        except ConfigError as error:
            if first:
                raise
            # The keys that were read last stay: a slip of an editor revokes nothing, and opens nothing. The next
            # request tries again, since it may be us who could not read, for want of a descriptor.
            if seen != self._unreadable:
                self._unreadable = seen
                log.error("keys_unreadable", reason=error.message)
            return
        self._seen, self._unreadable = seen, _NEVER
        self.needs_keys = self.needs_keys or seen != _NEVER
        self._callers = dict(map(_entry, keys))
        if not first:
            log.info("keys_changed", count=len(keys))
        if self.needs_keys and not keys:
            log.warning("no_key_is_left", path=self._path)


@lru_cache(maxsize=4096)
def neighbourhood(address: str) -> str:
    """What a limit by address counts under: an IPv6 host has a whole /64 of addresses to come from."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))


def _entry(key: Key) -> tuple[bytes, tuple[bytes, Caller]]:
    digest = bytes.fromhex(key.sha256)
    caller = Caller(key.id, key.name, key.role, key.id, key.max_requests, key.images_per_minute)
    return digest[:_INDEX_BYTES], (digest, caller)


def _secret(authorization: Iterable[bytes]) -> bytes | None:
    """The key that is shown; None where none is. What is unclear gives b"", which is no key's secret.

    Basic is for clients that know nothing else: the key is its password or, without one, its user.
    """
    values = [words for value in authorization if (words := value.split(None, 1))]
    if not values:
        return None
    if len(values) > 1:
        return b""
    match values[0]:
        case [scheme, shown] if scheme.lower() == b"bearer":
            return shown.rstrip()
        case [scheme, shown] if scheme.lower() == b"basic":
            try:
                user, _, password = base64.b64decode(shown.rstrip(), validate=True).partition(b":")
            except ValueError:
                return b""
            return password or user or None
        case [scheme] if scheme.lower() in (b"bearer", b"basic"):
            # What clients send whose field for the key was left empty.
            return None
    return b""
