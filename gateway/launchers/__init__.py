"""How a worker process comes to be: `Launcher` and `Handle`, shaped like Popen. Adding one: a file here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one worker: its name, the kind of device, the names of its devices, its share of the CPU threads."""

    name: str
    kind: str
    devices: tuple[str, ...]
    threads: int


class Handle(Protocol):
    """One started worker process."""

    pid: int

    async def wait(self) -> int:
        """Its exit status when it has ended; negative for a signal, as Popen has it."""
        ...

    def terminate(self) -> None:
        """Ask it to finish and leave."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...

    def last_words(self) -> list[str]:
        """The last lines it wrote to standard error, oldest first."""
        ...


class Launcher(Protocol):
    """Starts workers somewhere."""

    async def launch(self, slot: Slot, token: str) -> Handle:
        """Start a worker in this slot that shows this token."""
        ...
