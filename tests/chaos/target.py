"""The server under fire: its lives, its workers and its administration, while it is killed and started again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.chaos.history import SLACK_SECONDS, History, Life
from tests.server import Server, processes

WAIT_SECONDS = 60.0
# Its workers are gone a second after a gateway that is killed; a machine that others keep busy may take longer to look.
_ORPHAN_SECONDS = 5.0


class Failed(Exception):
    """A storm could not go on, or did not end: says what was waited for."""


class Target:
    """One server after the other on the same data folder in `folder`, its sockets in `runtime`.

    It is started with these arguments and settings, by `program` (see tests.server). Whoever asks it waits for `up`
    and takes `http` and `life` as they are then. It ends with the `stack`, at the latest.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Path,
        stack: ExitStack,
        history: History,
        args: Sequence[str],
        settings: dict[str, object],
        *,
        replicas: int,
        timeout_seconds: float,
        program: Sequence[str] = ("gateway",),
    ) -> None:
        self.runtime = runtime
        self.up = asyncio.Event()
        self.gone_seconds = 0.0
        self.http: httpx2.AsyncClient
        self.server: Server
        self.life: Life
        self._folder, self._stack, self._history = folder, stack, history
        self._args, self._settings, self._replicas, self._program = args, settings, replicas, program
        self._timeout = timeout_seconds

    async def begin(self) -> None:
        """Start it, again on the same data folder, and let its clients go on as soon as it listens."""
        life = Life(len(self._history.lives), time.time())
        folder = self._folder / f"gateway{life.number}"
        folder.mkdir()
        data_dir = self._folder / "data"
        args = ("--device", f"stub:{self._replicas}", *self._args)
        server = Server(folder, self.runtime, *args, data_dir=data_dir, program=self._program, **self._settings)
        self._stack.enter_context(server)
        address = await asyncio.to_thread(lambda: server.address)
        # Whoever is not answered in time hears it from here: later than any answer that may still come.
        patience = self._timeout + 2 * SLACK_SECONDS
        limits = httpx2.Limits(max_connections=500)
        self.http = httpx2.AsyncClient(base_url=address, timeout=patience, trust_env=False, limits=limits)
        self.server, self.life = server, life
        self._history.lives.append(life)
        self.up.set()

    async def end(self, *, told_to_leave: bool) -> None:
        """End it, with SIGTERM or SIGKILL. Raises Failed if one of its processes is left, or it ends in another way."""
        server, life, http = self.server, self.life, self.http
        self.up.clear()
        life.told, life.drained = time.time(), told_to_leave
        server.signal(signal.SIGTERM if told_to_leave else signal.SIGKILL)
        status = await asyncio.to_thread(server.wait)
        life.ended = time.time()
        if told_to_leave and status != 0:
            raise Failed(f"told to leave, the gateway ended with exit status {status}")

        async def nobody() -> bool:
            return not await asyncio.to_thread(processes, self.runtime)

        await within(nobody, "no worker outlives its gateway", _ORPHAN_SECONDS)
        self.gone_seconds = max(self.gone_seconds, time.time() - life.ended)
        life.log = server.log
        await http.aclose()

    async def freeze(self, seconds: float) -> None:
        """As a machine does that is suspended, or Ctrl-Z."""
        began = time.time()
        self.server.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.server.signal(signal.SIGCONT)
        self._history.frozen.append((began, time.time()))

    # Workers

    async def workers(self) -> list[psutil.Process]:
        """The workers that live now."""
        found = []
        for pid in (await asyncio.to_thread(self.server.workers)).values():
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        return found

    async def worker(self, number: int) -> psutil.Process:
        """One of the workers, as soon as there is one."""
        found: list[psutil.Process] = []

        async def there() -> bool:
            found[:] = await self.workers()
            return bool(found)

        await within(there, "a worker lives")
        return found[number % len(found)]

    # Administration

    async def name(self, number: int) -> str:
        """The name of one of the workers that there should be."""
        names = [row["id"] for row in (await self._admin("GET", "workers"))["data"]]
        return str(names[number % len(names)])

    async def tell(self, worker: str, what: str) -> None:
        """Have this worker drained or restarted; by then there may be none of that name."""
        began = time.time()
        if "error" not in await self._admin("POST", f"workers/{worker}/{what}"):
            # At some moment between both it was given its last work.
            self.life.retired += [(began, worker), (time.time(), worker)]

    async def scale(self, replicas: int) -> None:
        """Have so many workers."""
        began = time.time()
        rows = (await self._admin("POST", "scale", {"replicas": replicas}))["data"]
        gone = [row["id"] for row in rows if row["state"] == "draining"]
        self.life.retired += [(at, name) for at in (began, time.time()) for name in gone]

    async def _admin(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        """What it answers. Raises Failed unless that is as asked, or that there is no such worker."""
        await self.up.wait()
        answer = await self.http.request(method, f"/v1/admin/{path}", json=body)
        if answer.status_code != 200 and answer.json()["error"]["code"] != "worker_not_found":
            raise Failed(f"{method} {path}: {answer.status_code} {answer.text}")
        said: dict[str, Any] = answer.json()
        return said

    # What it says of itself

    async def is_whole(self) -> bool:
        """Whether it is ready with every replica."""
        ready = await self.http.get("/readyz")
        present = len(await self.workers()) == self._replicas
        return ready.status_code == 200 and present and await asyncio.to_thread(self.server.whole)

    async def is_quiet(self) -> bool:
        """Whether it has nothing in its hands."""
        held = [await self.metric(name) for name in ("replicast_jobs", "replicast_http_body_bytes")]
        return not any(held) and not any((await asyncio.to_thread(self.server.jobs)).values())

    async def size(self) -> Counter[str]:
        """What the gateway holds besides memory: tasks, and descriptors that are no client's connection."""
        descriptors = psutil.Process(self.server.pid).num_fds() - await self.metric("replicast_http_connections")
        return Counter(tasks=await self.metric("replicast_tasks"), descriptors=descriptors)

    async def metric(self, name: str, **labels: str) -> int:
        """One of its figures; 0 where there is none of that name."""
        return int(await asyncio.to_thread(lambda: self.server.metric(name, **labels)))


async def within(true: Callable[[], Awaitable[bool]], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until this is true. Raises Failed saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not await true():
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(0.05)
