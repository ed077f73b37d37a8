"""The models that a worker holds: reconciled to what is wanted, each with what became of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from shared import logs
from shared.errors import Behind, LoadFailed, ReplicastError
from shared.messages import Device, Outcome, Problem, Resident, Run, Wanted, WantedModel
from worker import backends
from worker.backends import Backend
from worker.device import DeviceLost

log = logs.get("engine")


@dataclass(slots=True)
class _Held:
    """A resident model: what was wanted, what serves it, what became of it."""

    model: WantedModel
    backend: Backend | None
    outcome: Outcome


class Residents:
    """Owned by the engine's thread; `facts` and `memory_bytes` may be asked from any."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, _Held] = {}

    def reconcile(self, wanted: Wanted) -> tuple[Outcome, ...]:
        """Hold what is wanted and nothing else; what became of each model. Raises DeviceLost."""
        models = {model.id: model for model in wanted.models}
        for name, held in list(self._held.items()):
            if models.get(name) != held.model or held.backend is None:
                self._release(name)
        for model in wanted.models:
            if model.id not in self._held:
                self._held[model.id] = self._load(model)
        return tuple(self._held[model.id].outcome for model in wanted.models)

    def backend(self, run: Run) -> Backend:
        """What serves this run. Raises Behind where its model is not held in the state that it asks for."""
        held = self._held.get(run.model)
        if held is None or held.backend is None or (held.model.epoch, held.model.digest) != (run.epoch, run.digest):
            raise Behind(f"{run.model} is not held in epoch {run.epoch}")
        return held.backend

    def facts(self) -> tuple[Resident, ...]:
        """The models held, with their states."""
        held = list(self._held.values())
        return tuple(Resident(model=h.model.id, epoch=h.model.epoch, digest=h.model.digest) for h in held if h.backend)

    def memory_bytes(self) -> int:
        """What the models hold, in bytes, as counted when they were loaded."""
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
        outcome = Outcome(
            model=model.id,
            card=card,
            epoch=model.epoch,
            digest=model.digest,
            memory_bytes=backend.memory_bytes(),
            seconds=seconds,
        )
        return _Held(model, backend, outcome)

    def _release(self, name: str) -> None:
        held = self._held.pop(name)
        if held.backend is not None:
            held.backend.unload()
            log.info("model_unloaded", model=name)
