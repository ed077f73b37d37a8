"""The supervisor, over a launcher whose processes the test ends: restarts, back-off, quarantine, bounded stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.keeper import Ears, RestartPolicy, Standing
from gateway.launchers import Slot
from gateway.supervisor import Supervisor

SLOT = Slot("a", "stub", ("0",), 1)


class FakeProcess:
    """A process that ends when it is told to, or, if it is stubborn, only when it is killed."""

    def __init__(self, pid: int, status: int | None, stubborn: bool) -> None:
        self.pid = pid
        self._stubborn = stubborn
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if status is not None:
            self.end(status)

    def end(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def terminate(self) -> None:
        if not self._stubborn:
            self.end(0)

    def kill(self) -> None:
        self.end(-9)

    def last_words(self) -> list[str]:
        return ["ImportError: no"]


class FakeLauncher:
    """Launches processes that end at once with `status`, or live."""

    def __init__(self, status: int | None = None, stubborn: bool = False, fails: bool = False) -> None:
        self.processes: list[FakeProcess] = []
        self.tokens: list[str] = []
        self._status, self._stubborn, self._fails = status, stubborn, fails

    async def launch(self, slot: Slot, token: str) -> FakeProcess:
        self.tokens.append(token)
        if self._fails:
            raise OSError("no such file")
        self.processes.append(FakeProcess(len(self.processes) + 1, self._status, self._stubborn))
        return self.processes[-1]


class Heard:
    """What the supervisor told."""

    def __init__(self, at_work: bool = False) -> None:
        self.lines: list[str] = []
        self._at_work = at_work
        self.ears = Ears(
            expect=lambda name, token: self.lines.append(f"expect {name}"),
            exited=self._exited,
            given_up=lambda name, reason: self.lines.append("given up"),
            dismissed=lambda name: self.lines.append(f"dismissed {name}"),
        )

    def _exited(self, name: str, reason: str) -> bool:
        self.lines.append(f"exited {reason}")
        return self._at_work


QUICK = RestartPolicy(backoff_seconds=0.001, limit=5, window_seconds=60, retry_seconds=0.05)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_worker_that_dies_is_started_again_with_a_new_token() -> None:
    launcher, heard = FakeLauncher(), Heard()
    supervisor = Supervisor(launcher, [SLOT], QUICK, heard.ears)
    supervisor.start()
    await until(lambda: launcher.processes)
    launcher.processes[0].end(-9)
    await until(lambda: len(launcher.processes) == 2)
    assert heard.lines == ["expect a", "exited signal SIGKILL", "expect a"]
    assert len(set(launcher.tokens)) == 2
    assert supervisor.facts["a"].restarts == {"ended": 1}
    assert supervisor.facts["a"].last_error == "signal SIGKILL"
    await supervisor.stop(1)
    assert supervisor.facts["a"].standing is Standing.STOPPED


async def test_an_exit_with_status_0_is_a_death_too() -> None:
    launcher, heard = FakeLauncher(), Heard()
    supervisor = Supervisor(launcher, [SLOT], QUICK, heard.ears)
    supervisor.start()
    await until(lambda: launcher.processes)
    launcher.processes[0].end(0)
    await until(lambda: len(launcher.processes) == 2)
    assert supervisor.facts["a"].last_error == "exit status 0"
    await supervisor.stop(1)


async def test_a_crash_loop_is_quarantined_and_tried_again_one_by_one() -> None:
    launcher, heard = FakeLauncher(status=1), Heard()
    policy = RestartPolicy(backoff_seconds=0.001, limit=5, window_seconds=60, retry_seconds=0.2)
    supervisor = Supervisor(launcher, [SLOT], policy, heard.ears)
    supervisor.start()
    await until(lambda: supervisor.facts["a"].standing is Standing.QUARANTINED)
    assert len(launcher.processes) == 5
    assert supervisor.facts["a"].last_words == ["ImportError: no"]
    assert heard.lines[-1] == "given up"
    await until(lambda: len(launcher.processes) == 6)
    await until(lambda: heard.lines.count("given up") == 2)
    assert len(launcher.processes) == 6
    await supervisor.stop(1)


async def test_deaths_of_a_workers_work_are_no_crash_loop() -> None:
    launcher, heard = FakeLauncher(status=1), Heard(at_work=True)
    supervisor = Supervisor(launcher, [SLOT], QUICK, heard.ears)
    supervisor.start()
    await until(lambda: len(launcher.processes) > 2 * QUICK.limit)
    assert "given up" not in heard.lines
    await supervisor.stop(1)


async def test_what_cannot_be_started_is_a_death_too() -> None:
    launcher, heard = FakeLauncher(fails=True), Heard()
    supervisor = Supervisor(launcher, [SLOT], QUICK, heard.ears)
    supervisor.start()
    await until(lambda: supervisor.facts["a"].standing is Standing.QUARANTINED)
    assert "cannot be started: no such file" in supervisor.facts["a"].last_error
    assert supervisor.facts["a"].restarts == {"launch_failed": 4}
    await supervisor.stop(1)


async def test_stop_asks_waits_and_then_kills() -> None:
    gentle, stubborn = FakeLauncher(), FakeLauncher(stubborn=True)
    for launcher, status in ((gentle, 0), (stubborn, -9)):
        supervisor = Supervisor(launcher, [SLOT], QUICK, Heard().ears)
        supervisor.start()
        await until(lambda launcher=launcher: launcher.processes)
        async with asyncio.timeout(5):
            await supervisor.stop(0.05)
        assert launcher.processes[0].ended.result() == status
        assert len(launcher.processes) == 1


async def test_kill_ends_it_and_it_comes_back() -> None:
    launcher = FakeLauncher()
    supervisor = Supervisor(launcher, [SLOT], QUICK, Heard().ears)
    supervisor.start()
    await until(lambda: launcher.processes)
    supervisor.kill("a", "silent")
    supervisor.kill("nobody", "silent")
    await until(lambda: len(launcher.processes) == 2)
    assert supervisor.facts["a"].restarts == {"silent": 1}
    assert supervisor.facts["a"].last_error == "silent, signal SIGKILL"
    await supervisor.stop(1)


async def test_a_restart_is_asked_for_and_is_no_failure() -> None:
    launcher, heard = FakeLauncher(), Heard()
    supervisor = Supervisor(launcher, [SLOT], QUICK, heard.ears)
    supervisor.start()
    for count in range(1, 2 * QUICK.limit):
        await until(lambda count=count: len(launcher.processes) == count and supervisor.facts["a"].pid == count)
        supervisor.want("a", Standing.RUNNING, 5)
    assert "given up" not in heard.lines
    assert supervisor.facts["a"].last_error == ""
    await supervisor.stop(1)


async def test_what_is_drained_stays_away_until_it_is_wanted_again() -> None:
    launcher, heard = FakeLauncher(), Heard()
    supervisor = Supervisor(launcher, [SLOT], QUICK, heard.ears)
    supervisor.start()
    await until(lambda: supervisor.facts["a"].pid)
    supervisor.want("a", Standing.DRAINED, 5)
    assert supervisor.facts["a"].standing is Standing.DRAINING
    await until(lambda: supervisor.facts["a"].standing is Standing.DRAINED)
    assert heard.lines == ["expect a", "exited exit status 0", "given up"]
    await asyncio.sleep(0.02)
    assert len(launcher.processes) == 1
    supervisor.want("a", Standing.RUNNING, 5)
    await until(lambda: supervisor.facts["a"].pid == 2)
    assert supervisor.facts["a"].standing is Standing.RUNNING
    await supervisor.stop(1)


async def test_who_does_not_leave_in_time_is_killed() -> None:
    launcher = FakeLauncher(stubborn=True)
    supervisor = Supervisor(launcher, [SLOT], QUICK, Heard().ears)
    supervisor.start()
    await until(lambda: supervisor.facts["a"].pid)
    supervisor.want("a", Standing.RUNNING, 0.02)
    await until(lambda: supervisor.facts["a"].pid == 2)
    assert launcher.processes[0].ended.result() == -9
    await asyncio.sleep(0.05)
    assert supervisor.facts["a"].pid == 2, "the time of the former process is not the new one's"
    await supervisor.stop(0.01)


async def test_nobody_waits_for_a_process_that_is_gone() -> None:
    launcher = FakeLauncher()
    supervisor = Supervisor(launcher, [SLOT], QUICK, Heard().ears)
    supervisor.start()
    for number in range(1, 6):
        await until(lambda number=number: supervisor.facts["a"].pid == number)
        supervisor.want("a", Standing.RUNNING, 3600)
    await until(lambda: supervisor.facts["a"].pid == 6)
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "reap-a"])
    assert [process.ended.done() for process in launcher.processes] == [True] * 5 + [False]
    await supervisor.stop(1)


async def test_workers_come_and_go() -> None:
    launcher, heard = FakeLauncher(), Heard()
    supervisor = Supervisor(launcher, [SLOT], QUICK, heard.ears)
    supervisor.start()
    supervisor.add(Slot("b", "stub", ("1",), 1))
    await until(lambda: all(fact.pid for fact in supervisor.facts.values()) and len(supervisor.facts) == 2)
    supervisor.want("b", Standing.STOPPED, 5)
    await until(lambda: list(supervisor.facts) == ["a"])
    assert heard.lines[-1] == "dismissed b"
    await supervisor.stop(1)
    assert list(supervisor.facts) == ["a"]


async def test_a_quarantined_worker_can_be_started_by_hand() -> None:
    launcher = FakeLauncher(status=1)
    policy = RestartPolicy(backoff_seconds=0.001, limit=3, window_seconds=60, retry_seconds=60)
    supervisor = Supervisor(launcher, [SLOT], policy, Heard().ears)
    supervisor.start()
    await until(lambda: supervisor.facts["a"].standing is Standing.QUARANTINED)
    launcher._status = None
    supervisor.want("a", Standing.RUNNING, 5)
    await until(lambda: supervisor.facts["a"].pid == 4)
    assert supervisor.facts["a"].standing is Standing.RUNNING
    await supervisor.stop(1)
