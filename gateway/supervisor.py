"""The declared workers, each with its keeper: started, drained, restarted, added and dismissed, and stopped in time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from gateway.causes import Death
from gateway.keeper import Ears, Facts, Keeper, RestartPolicy, Standing
from gateway.launchers import Launcher, Slot


class Supervisor:
    """Owns one process per slot. Every call comes from the loop's thread."""

    def __init__(self, launcher: Launcher, slots: Iterable[Slot], policy: RestartPolicy, ears: Ears) -> None:
        self._launcher = launcher
        self._policy = policy
        self._ears = ears
        self._keepers = {slot.name: Keeper(slot, launcher, policy, ears) for slot in slots}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reapers: set[asyncio.Task[None]] = set()
        self._dismissed: set[str] = set()

    @property
    def facts(self) -> dict[str, Facts]:
        """What is known about each slot."""
        return {name: keeper.facts for name, keeper in self._keepers.items()}

    def start(self) -> None:
        """Start every worker."""
        for name in self._keepers:
            self._begin(name)

    def add(self, slot: Slot) -> None:
        """Have one worker more."""
        self._keepers[slot.name] = Keeper(slot, self._launcher, self._policy, self._ears)
        self._begin(slot.name)

    def want(self, name: str, standing: Standing, grace_seconds: float) -> None:
        """Have this worker restarted (RUNNING), DRAINED or gone (STOPPED), once it has finished what it has in hand.

        It is asked now, and killed when that takes longer than `grace_seconds`. KeyError for an unknown name.
        """
        keeper = self._keepers[name]
        if standing is Standing.STOPPED:
            self._dismissed.add(name)
        pid = keeper.facts.pid
        keeper.want(standing)
        keeper.terminate()
        reaper = asyncio.create_task(self._reap(keeper, pid, grace_seconds), name=f"reap-{name}")
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)

    def kill(self, name: str, reason: Death) -> None:
        """End this worker's process now; it is started again as after any death."""
        if keeper := self._keepers.get(name):
            keeper.kill(reason)

    def hurry(self) -> None:
        """End every worker now, for good; `stop` reaps them."""
        for keeper in self._keepers.values():
            keeper.want(Standing.STOPPED)
            keeper.kill()

    async def stop(self, grace_seconds: float) -> None:
        """Ask every worker to leave, wait, kill what is left, reap all."""
        for keeper in self._keepers.values():
            keeper.want(Standing.STOPPED)
            keeper.terminate()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for task in (*tasks, *self._reapers):
            task.cancel()
        await asyncio.gather(*tasks, *self._reapers, return_exceptions=True)

    def _begin(self, name: str) -> None:
        keeper = self._keepers[name]
        # Before its task runs: whoever looks now has to see that it is coming.
        keeper.facts.standing = Standing.RUNNING
        task = asyncio.create_task(keeper.keep(), name=f"keep-{name}")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._end(name))

    def _end(self, name: str) -> None:
        """A worker that was dismissed has left; those that stop with the server stay to be looked at."""
        self._tasks.pop(name, None)
        if name in self._dismissed:
            self._dismissed.remove(name)
            del self._keepers[name]
            self._ears.dismissed(name)

    async def _reap(self, keeper: Keeper, pid: int, grace_seconds: float) -> None:
        """Over as soon as the process is: its time is not that of the next one in the slot."""
        try:
            async with asyncio.timeout(grace_seconds):
                await keeper.ended(pid)
        except TimeoutError:
            if keeper.facts.pid == pid:
                keeper.kill()
