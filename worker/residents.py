"""The models that a worker holds: reconciled to what is wanted, each with what became of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from shared import logs
from shared.errors import (
    AdapterMisfit,
    Behind,
    InvalidAdapter,
    LoadFailed,
    LoraFailed,
    OutOfMemory,
    ReplicastError,
    UnknownAdapter,
)
from shared.loras import NO_LORAS, LoraState
from shared.messages import Device, Outcome, Prepare, Prepared, Problem, Resident, Run, Wanted, WantedModel
from worker import backends
from worker.backends import Backend
from worker.device import DeviceLost

_OF_FILES = (AdapterMisfit, InvalidAdapter, UnknownAdapter)

log = logs.get("engine")


@dataclass(slots=True)
class _Held:
    """A resident model: what was wanted, what serves it, what became of it, and whether its weights are in no doubt."""

    model: WantedModel
    backend: Backend | None
    outcome: Outcome
    sound: bool = True


class Residents:
    """Owned by the engine's thread; `prepare`, `facts` and `memory_bytes` may be asked from any."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._shelf = ""
        self._held: dict[str, _Held] = {}

    def reconcile(self, wanted: Wanted) -> tuple[Outcome, ...]:
        """Hold what is wanted and nothing else; what became of each model. Raises DeviceLost.

        A model that differs in nothing but its LoRAs stays where it is, and takes on the new ones.
        """
        models = {model.id: model for model in wanted.models}
        for name, held in list(self._held.items()):
            if name not in models or held.backend is None or _bare(models[name]) != _bare(held.model):
                self._release(name)
        moved, self._shelf = wanted.shelf != self._shelf, wanted.shelf
        for model in wanted.models:
            held_before = self._held.get(model.id)
            if held_before is None:
                self._held[model.id] = self._load(model)
            elif moved or not held_before.sound or model != held_before.model:
                self._adopt(held_before, model)
        return tuple(self._held[model.id].outcome for model in wanted.models)

    def prepare(self, asked: Prepare) -> Prepared:
        """Whether a model could take on these LoRAs, which moves nothing; never raises."""
        held = self._held.get(asked.model)
        problem: ReplicastError
        try:
            if held is None or held.backend is None or _is_past(asked, held.model):
                raise Behind(f"{asked.model} is not held in an epoch before {asked.epoch}")
            matches = held.backend.prepare(asked.loras, self._shelf)
            return Prepared(model=asked.model, epoch=asked.epoch, digest=asked.loras.digest, matches=matches)
        except ReplicastError as error:
            problem = error
        except MemoryError:
            problem = OutOfMemory("the LoRAs do not fit in this machine's memory")
        except Exception as error:
            # A file from elsewhere can make a library raise anything.
            log.exception("prepare_failed", model=asked.model, epoch=asked.epoch)
            problem = LoraFailed(f"the LoRAs cannot be prepared: {type(error).__name__}")
        log.info("loras_refused", model=asked.model, epoch=asked.epoch, problem=problem.message)
        return Prepared(model=asked.model, epoch=asked.epoch, digest=asked.loras.digest, problem=Problem.of(problem))

    def doubt(self, model: str) -> None:
        """The weights of this model may not be in its state: they have to be mended before they are used again."""
        if held := self._held.get(model):
            held.sound = False

    def mend(self) -> None:
        """Bring weights that are in doubt back into their state. Raises DeviceLost where that cannot be done."""
        for held in self._held.values():
            if held.sound or held.backend is None:
                continue
            self._adopt(held, held.model)
            if held.outcome.problem is not None:
                # Between two wanted states nobody would hear of it: a new process serves this model sooner.
                raise DeviceLost(held.outcome.problem.message)

    def backend(self, run: Run) -> Backend:
        """What serves this run. Raises Behind where its model is not held in the state that it asks for."""
        held = self._held.get(run.model)
        if held is None or held.backend is None or (held.model.epoch, held.model.digest) != (run.epoch, run.digest):
            raise Behind(f"{run.model} is not held in epoch {run.epoch}")
        return held.backend

    def loras(self, run: Run) -> LoraState:
        """The LoRAs that this run is made with: its own, or those of its model's state."""
        held = self._held[run.model].model.loras
        return held if run.loras is None else LoraState(adapters=run.loras)

    def facts(self) -> tuple[Resident, ...]:
        """The models held, with their states."""
        held = list(self._held.values())
        return tuple(
            Resident(
                model=each.model.id,
                epoch=each.model.epoch,
                digest=each.model.digest,
                fingerprint=each.outcome.fingerprint,
            )
            for each in held
            if each.backend
        )

    def memory_bytes(self) -> int:
        """What the models hold, in bytes, as counted when they were loaded or last took on LoRAs."""
        return sum(held.outcome.memory_bytes for held in list(self._held.values()))

    def release(self) -> None:
        """Give everything back."""
        for name in list(self._held):
            self._release(name)

    def _load(self, model: WantedModel) -> _Held:
        started = time.monotonic()
        backend: Backend | None = None
        try:
            backend = backends.create(model, self._device)
            card = backend.load()
        except DeviceLost:
            raise
        except Exception as error:
            # A file from elsewhere can make a library raise anything; the model is reported, the worker stays.
            problem = (
                error
                if isinstance(error, ReplicastError)
                else LoadFailed(f"{model.id} cannot be loaded: {type(error).__name__}")
            )
            log.error(
                "load_failed", model=model.id, problem=problem.message, exc_info=not isinstance(error, ReplicastError)
            )
            if backend is not None:
                backend.unload()
            return _Held(model, None, Outcome(model=model.id, problem=Problem.of(problem)))
        seconds = time.monotonic() - started
        log.info("model_loaded", model=model.id, seconds=round(seconds, 3))
        held = _Held(model, backend, Outcome(model=model.id, card=card, seconds=seconds))
        self._adopt(held, model)
        return held

    def _adopt(self, held: _Held, model: WantedModel) -> None:
        """Bring the weights of what is held into the state of `model`; where that fails twice, give them back."""
        assert held.backend is not None
        problem = self._adopted(held, model)
        if problem is not None:
            # It starts afresh. What fails twice is not served, and where weights are in doubt the process ends for it.
            problem = self._adopted(held, model)
        if problem is None:
            return
        held.backend.unload()
        held.model, held.backend = model, None
        held.outcome = Outcome(model=model.id, problem=Problem.of(problem))

    def _adopted(self, held: _Held, model: WantedModel) -> ReplicastError | None:
        """One try; why it failed. What was raised is gone when this returns, and with it the tensors it held."""
        assert held.backend is not None
        started = time.monotonic()
        try:
            fingerprint = held.backend.adopt(model.loras, self._shelf)
        except DeviceLost:
            raise
        except Exception as error:
            said = error.message if isinstance(error, ReplicastError) else type(error).__name__
            log.error(
                "adopt_failed",
                model=model.id,
                epoch=model.epoch,
                problem=said,
                exc_info=not isinstance(error, ReplicastError),
            )
            failed = f"{model.id} cannot take on the LoRAs of epoch {model.epoch}: {said}"
            # A file that is gone or spoilt is no better for a new process: this one stays, and tries again when told.
            return type(error)(failed) if isinstance(error, _OF_FILES) else LoraFailed(failed)
        seconds = time.monotonic() - started
        held.model, held.sound = model, True
        held.outcome = held.outcome.model_copy(
            update={
                "epoch": model.epoch,
                "digest": model.digest,
                "fingerprint": fingerprint,
                "memory_bytes": held.backend.memory_bytes(),
                "seconds": held.outcome.seconds if held.outcome.digest == "" else seconds,
            }
        )
        if model.epoch:
            log.info("loras_adopted", model=model.id, epoch=model.epoch, seconds=round(seconds, 3))
        return None

    def _release(self, name: str) -> None:
        held = self._held.pop(name)
        if held.backend is not None:
            held.backend.unload()
            log.info("model_unloaded", model=name)


def _bare(model: WantedModel) -> WantedModel:
    """The model without its LoRAs: what has to be loaded anew where it changes."""
    return model.model_copy(update={"epoch": 0, "loras": NO_LORAS})


def _is_past(asked: Prepare, model: WantedModel) -> bool:
    """Whether this epoch is behind what is held; the content of the one that is held is decided."""
    return asked.epoch < model.epoch or (asked.epoch == model.epoch and asked.loras.digest != model.loras.digest)
