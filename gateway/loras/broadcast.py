"""The LoRA state of every model: changed one decision at a time, each asked, written down, and then followed by all.

Every replica is asked first, and one that cannot calls it off: then nothing has moved anywhere. The decision is one
durable row. What comes after cannot fail as a whole: replicas are brought to the new state for as long as it takes, one
that cannot follow is taken out of service, and if nobody follows in time, what was before is decided anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from gateway.keeper import Standing
from gateway.loras.commands import Held
from gateway.loras.outcomes import Change, Command, Patience, Status, Wait, objection
from gateway.loras.rows import Row, converged, rows
from gateway.serving import Serving
from gateway.store.epochs import Epoch, Epochs
from shared import errors, logs
from shared.loras import NO_LORAS, LoraState
from shared.messages import Match, WantedModel

_MOST_WAITING = 16
_OF_FILES = {error.code for error in (errors.AdapterMisfit, errors.InvalidAdapter, errors.UnknownAdapter)}

T = TypeVar("T")

log = logs.get("loras")


class Broadcast:
    """Owned by the server's loop. `restore` comes before the workers, `stop` after the last command."""

    def __init__(self, serving: Serving, epochs: Epochs, patience: Patience) -> None:
        self._serving, self._epochs, self._patience = serving, epochs, patience
        self._held = {model.id: Held() for model in serving.pool.wanted.models}
        self._locks = {model: asyncio.Lock() for model in self._held}
        self._waiting: Counter[str] = Counter()
        self._commands = 0
        self._last: dict[str, Command] = {}
        # Of each model the last epoch that nobody could follow.
        self._reverted: dict[str, int] = {}
        self._pending: dict[str, int] = {}
        self._kept: list[LoraState] = []
        self._matches: dict[str, dict[str, Match]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def restore(self) -> None:
        """Want again what was decided before this process: workers are told with their welcome."""
        for model in self._serving.pool.wanted.models:
            last = await self._epochs.last(model.id)
            if last is None:
                continue
            if last.source != model.source:
                # Another model by the same name: what was decided for the former may not even fit this one.
                log.warning("lora_state_dropped", model=model.id, was=last.source, source=model.source)
                number = await self._epochs.highest(model.id) + 1
                last = Epoch(model.id, number, model.source, NO_LORAS, by="restart", at=time.time())
                await self._epochs.commit(last)
            self._held[model.id] = Held(last.state, last.names)
            self._serving.decide(model.id, last.epoch, last.state)
            if last.state.adapters:
                # Its former gateway may have ended before it could see that nobody follows.
                was = await self._epochs.before(last)
                former = Held(was.state, was.names) if was and was.source == last.source else Held()
                self._task(self._looked_after(last, former, restored=True))

    @property
    def idle(self) -> bool:
        """Whether no command waits for its answer."""
        return not self._commands

    def hurry(self) -> None:
        """End what still waits for replicas; what was decided stays decided."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """As `hurry`, and wait for it."""
        self.hurry()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def held(self, model: str) -> Held:
        """What is decided for a model. Raises UnknownModel."""
        if model not in self._held:
            raise errors.UnknownModel(f"The model {model!r} does not exist.", param="model")
        return self._held[model]

    def epoch(self, model: str) -> int:
        """The number of what is decided for a model; 0 before the first decision."""
        return self._wanted(model).epoch

    def digest(self, model: str) -> str:
        """The digest of the model in its state, which each replica has to tell as its own."""
        return self._wanted(model).digest

    def pending(self, model: str) -> int | None:
        """The number of what replicas are being asked about, if they are."""
        return self._pending.get(model)

    def last(self, model: str) -> Command | None:
        """What became of the last command, since this process started."""
        last = self._last.get(model)
        if last and last.status == "pending" and last.epoch == self.epoch(model) and converged(self.rows(model)):
            # They have followed since its answer was given.
            return replace(last, status="applied")
        return last

    def matches(self, model: str) -> Mapping[str, Match]:
        """What each adapter does to the model, by its hash, as replicas said when they were last asked."""
        return self._matches.get(model, {})

    def rows(self, model: str) -> tuple[Row, ...]:
        """How far each replica is."""
        return rows(self._serving, self._wanted(model))

    def in_use(self) -> set[str]:
        """The files that a state, or a nickname, stands for: they have to stay where they are."""
        named = {file.sha256 for held in self._held.values() for file in held.names.values()}
        active = {each.sha256 for held in self._held.values() for each in held.state.adapters}
        # Those that requests brought along.
        asked = {each.sha256 for job in self._serving.pool.jobs.values() for each in job.loras or ()}
        # What is being voted on, and what may have to come back.
        kept = {each.sha256 for state in self._kept for each in state.adapters}
        return named | active | asked | kept

    async def change(
        self, model: str, command: Callable[[Held], Held], *, if_epoch: int | None, wait: Wait, by: str
    ) -> Change:
        """Carry out a command, whole or not at all, even if whoever asked does not wait for its end.

        Raises StateChanged where the epoch is not `if_epoch`, NotReady where nobody can be asked, what the replicas
        have against it (LoraRefused where they differ), Draining, and what `command` raises.
        """
        self.held(model)
        if self._serving.pool.draining:
            raise errors.Draining("The server is shutting down.", retry_after_seconds=5)
        if self._waiting[model] >= _MOST_WAITING:
            raise errors.LoraRefused(f"{_MOST_WAITING} changes of {model!r} are waiting already.")
        task = self._task(self._change(model, command, if_epoch, wait, by))
        self._commands += 1
        task.add_done_callback(self._answered)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            # Not whoever asked has left: we do.
            raise errors.Draining(
                "The server is shutting down; /v1/list_loras tells what holds when it is back.", retry_after_seconds=5
            ) from None

    def _answered(self, _: object) -> None:
        self._commands -= 1

    async def _change(
        self, model: str, command: Callable[[Held], Held], if_epoch: int | None, wait: Wait, by: str
    ) -> Change:
        self._waiting[model] += 1
        try:
            async with self._locks[model]:
                changed = await self._carry_out(model, command, if_epoch, by)
                # Its own, whatever others decide while it waits: whoever pins requests to it means this state.
                epoch, held = self.epoch(model), self._held[model]
        finally:
            self._waiting[model] -= 1
        done = await self._followed(model, wait)
        status: Status = ("applied" if changed else "unchanged") if done else "pending"
        if self._reverted.get(model) == epoch:
            status = "reverted"
        elif self.epoch(model) == epoch and not changed:
            self._last[model] = Command(epoch, status, {})
        return Change(status, model, epoch, held, self.rows(model))

    async def _carry_out(self, model: str, command: Callable[[Held], Held], if_epoch: int | None, by: str) -> bool:
        """Ask, write down, and tell; whether there was anything to be done."""
        former, wanted = self._held[model], self._wanted(model)
        if if_epoch not in (None, wanted.epoch):
            now = f"The LoRA state of {model!r} is of epoch {wanted.epoch} now, and not of {if_epoch}."
            raise errors.StateChanged(now, param="if_epoch")
        held = command(former)
        if held == former:
            if self._unable(model):
                # What they lacked may be there again: it was looked for, and copied, before this.
                self._serving.decide(model, wanted.epoch, held.state)
            return False
        epoch = Epoch(model, await self._epochs.highest(model) + 1, wanted.source, held.state, held.names, by=by)
        # Without any LoRA everybody can be; and where nobody can follow any more, that is the way out.
        if held.state.digest != former.state.digest and held.state.adapters:
            await self._ask(epoch)
        await self._decide(epoch)
        if held.state.adapters:
            # From a bare model there is no way back: what was before may be why it has to be bare.
            self._task(self._looked_after(epoch, former))
        return True

    async def _ask(self, epoch: Epoch) -> None:
        """Pass if the replicas can have this state. Raises what they have against it, and then nothing has moved."""
        self._pending[epoch.model] = epoch.epoch
        self._kept.append(epoch.state)
        try:
            ballot = await self._serving.vote(epoch.model, epoch.epoch, epoch.state)
        finally:
            del self._pending[epoch.model]
            self._kept.remove(epoch.state)
        if ballot.agreed:
            told = next(iter(ballot.votes.values())).matches
            self._matches[epoch.model] = {match.sha256: match for match in told}
            return
        reasons = {worker: problem.message for worker, problem in ballot.refusals.items()}
        said = "; ".join(f"{worker}: {reason}" for worker, reason in reasons.items()) or "no replica answered"
        log.warning("lora_refused", model=epoch.model, epoch=epoch.epoch, reasons=said)
        await self._epochs.abort(replace(epoch, reason=said, at=time.time()))
        self._last[epoch.model] = Command(epoch.epoch, "aborted", reasons)
        raise objection(epoch.model, ballot)

    async def _decide(self, epoch: Epoch) -> None:
        """One row, and it holds; from here on no picture is begun with what was before."""
        await self._epochs.commit(replace(epoch, at=time.time()))
        self._held[epoch.model] = Held(epoch.state, epoch.names)
        self._last[epoch.model] = Command(epoch.epoch, "pending", {})
        log.info("lora_decided", model=epoch.model, epoch=epoch.epoch, digest=epoch.state.digest, by=epoch.by)
        self._serving.decide(epoch.model, epoch.epoch, epoch.state)

    async def _followed(self, model: str, wait: Wait) -> bool:
        """Whether all serve with what is wanted; waits for that, or for the first, as long as an answer may take."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.answer_seconds):
                while not self._enough(model, wait):
                    await self._serving.stirred()
        return converged(self.rows(model))

    def _enough(self, model: str, wait: Wait) -> bool:
        found = self.rows(model)
        return wait == "none" or (wait == "first" and any(row.applied for row in found)) or converged(found)

    async def _looked_after(self, epoch: Epoch, former: Held, *, restored: bool = False) -> None:
        """Look after a decision, and keep the files of what was before as long."""
        self._kept.append(former.state)
        try:
            await self._look_after(epoch, former, restored=restored)
        finally:
            self._kept.remove(former.state)

    async def _look_after(self, epoch: Epoch, former: Held, *, restored: bool = False) -> None:
        """If nobody can follow a decision, decide again for what was before: one that nobody serves helps nobody.

        One that is `restored` was perhaps served until now, by replicas that have yet to load: it is not taken back
        before each of them has failed with it.
        """
        model, failures, away = epoch.model, self._failures(), self._quarantined()

        def over() -> bool:
            return self.epoch(model) != epoch.epoch or any(row.applied for row in self.rows(model))

        def hopeless() -> bool:
            # Who starts, is busy, or was gone before says nothing of this state.
            now = self._failures()
            failed = {name for name, times in now.items() if times > failures.get(name, 0)}
            if restored:
                return failed >= now.keys()
            return bool(failed or self._quarantined() - away) or self._unable(model)

        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.revert_seconds):
                while not over():
                    await self._serving.stirred()
        while not over():
            if hopeless():
                await self._take_back(epoch, former, over)
                return
            await self._serving.stirred()

    async def _take_back(self, epoch: Epoch, former: Held, over: Callable[[], bool]) -> None:
        model = epoch.model
        async with self._locks[model]:
            if over():
                return
            log.error("lora_reverted", model=model, epoch=epoch.epoch)
            again = replace(epoch, epoch=await self._epochs.highest(model) + 1, state=former.state, names=former.names)
            await self._decide(replace(again, by="revert"))
            reasons = {row.worker: row.problem.message for row in self.rows(model) if row.problem}
            self._last[model], self._reverted[model] = Command(again.epoch, "reverted", reasons), epoch.epoch

    def _failures(self) -> dict[str, int]:
        """How many times each worker had to end since it could not bring its weights into a state."""
        facts = self._serving.supervisor.facts
        return {name: it.restarts["lora_failed"] + (it.cause == "lora_failed") for name, it in facts.items()}

    def _unable(self, model: str) -> bool:
        """Whether a replica says of what is wanted now that it cannot be had from the files there are."""
        pool = self._serving.pool
        told = [w.outcomes.get(model) for w in pool.workers.values() if w.version == pool.wanted.version]
        return any(each and each.problem and each.problem.code in _OF_FILES for each in told)

    def _quarantined(self) -> set[str]:
        facts = self._serving.supervisor.facts
        return {name for name, fact in facts.items() if fact.standing is Standing.QUARANTINED}

    def _wanted(self, model: str) -> WantedModel:
        return next(wanted for wanted in self._serving.pool.wanted.models if wanted.id == model)

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
