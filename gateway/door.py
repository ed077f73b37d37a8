"""Who may come in as a worker: the names that are expected, the token each must show, and those given up on."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from shared.messages import PROTOCOL, Hello


class Door:
    """Names come and go with the processes behind them; every start of one has a token of its own."""

    def __init__(self) -> None:
        # None: its process has ended and another will be started.
        self._tokens: dict[str, bytes | None] = {}
        # Ticks since a process was started that has not said Hello.
        self._ticks: dict[str, int] = {}
        self.given_up: dict[str, str] = {}

    def expect(self, name: str, token: str) -> None:
        """A process that shows this token may use this name."""
        self._tokens[name] = token.encode()
        self._ticks[name] = 0
        self.given_up.pop(name, None)

    def close(self, name: str) -> None:
        """The process has ended: its token is worth nothing now."""
        self._tokens[name] = None
        self._ticks.pop(name, None)

    def give_up(self, name: str, reason: str) -> None:
        """Nobody of this name will come for a while."""
        self._tokens.pop(name, None)
        self._ticks.pop(name, None)
        self.given_up[name] = reason

    def forget(self, name: str) -> None:
        """There is no such name any more."""
        self._tokens.pop(name, None)
        self._ticks.pop(name, None)
        self.given_up.pop(name, None)

    def refusal(self, hello: Hello) -> tuple[str, str] | None:
        """Why this Hello is refused, as code and words; None if it may come in."""
        if hello.protocol != PROTOCOL:
            return "protocol", f"the gateway speaks protocol {PROTOCOL}, the worker {hello.protocol}"
        token = self._tokens.get(hello.name)
        # As bytes: the comparison of strings raises on what is not ASCII.
        if token is None or not hmac.compare_digest(token, hello.token.encode("utf-8", "surrogatepass")):
            return "forbidden", "name and token do not match"
        self._ticks.pop(hello.name, None)
        return None

    def overdue(self, most_ticks: float) -> list[str]:
        """Count one tick; the names whose processes were started longer ago than that and never said Hello."""
        self._ticks = {name: ticks + 1 for name, ticks in self._ticks.items()}
        late = [name for name, ticks in self._ticks.items() if ticks > most_ticks]
        for name in late:
            del self._ticks[name]
        return late

    def awaited(self, present: Iterable[str]) -> bool:
        """Whether somebody is on the way who is not `present` yet."""
        return bool(self._tokens.keys() - set(present))
