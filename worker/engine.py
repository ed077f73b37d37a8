"""The GPU thread: one thing at a time, between two jobs the wanted state, and at every step a look at who still waits.

The engine owns the backends. It is told by `apply`, `run` and `cancel` from the loop's thread, and speaks through one
callback, in messages: Ack, Progress, Done, Failed. Pictures are decoded and encoded by threads of their own, so that
the device has its next job while the last one's bytes are made.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared import logs
from shared.errors import Behind, Cancelled, JobFailed, LoadFailed, OutOfMemory, ReplicastError
from shared.messages import (
    Ack,
    Device,
    Done,
    Failed,
    Outcome,
    Problem,
    Resident,
    Run,
    Timings,
    Wanted,
    WantedModel,
)
from worker import backends, finishing, inputs
from worker.backends import Backend, Inputs, Picture
from worker.device import DeviceLost
from worker.task import Speak, Task

if TYPE_CHECKING:
    from worker.backends import Pixels

# sysexits' EX_SOFTWARE: the device is in a state that no call can mend.
EXIT_DEVICE_LOST = 70
_PROGRESS_SECONDS = 0.1
# As many as one picture may have: alone, it never loses one.
_PREVIEWS = 3

log = logs.get("engine")


class Stopped(Exception):
    """Raised out of a backend's step when nobody waits for the picture any more."""


@dataclass(slots=True)
class _Held:
    """A resident model: what was wanted, what serves it, what became of it."""

    model: WantedModel
    backend: Backend | None
    outcome: Outcome


class Engine:
    """Owns the models of one slice of devices. `speak` is called from the engine's threads and must be safe there."""

    def __init__(self, device: Device, speak: Speak, *, encode_threads: int) -> None:
        self._device = device
        self._speak = speak
        self._wake = threading.Condition()
        self._wanted: Wanted | None = None
        self._tasks: deque[Task] = deque()
        self._current: Task | None = None
        self._held: dict[str, _Held] = {}
        self._stopping = False
        self._encoders = ThreadPoolExecutor(encode_threads, thread_name_prefix="encode")
        # Beside them: a finished picture does not wait for those that somebody else has sent.
        self._decoders = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._encoding = threading.BoundedSemaphore(encode_threads * 2)
        self._showing = threading.BoundedSemaphore(max(_PREVIEWS, encode_threads * 2))
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.steps = 0

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Stop at the next step and give the models back; whether that was done in time."""
        with self._wake:
            self._stopping = True
            if self._current:
                self._current.cancelled = True
            self._wake.notify()
        self._thread.join(timeout_seconds)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=not self._thread.is_alive())
        return not self._thread.is_alive()

    def apply(self, wanted: Wanted) -> None:
        """Reconcile to `wanted` before the next run; answers Ack. A newer state replaces one not yet begun."""
        with self._wake:
            self._wanted = wanted
            self._wake.notify()

    def run(self, run: Run, attachments: Sequence[bytes | memoryview]) -> None:
        """Take a run in hand; answers Progress at step 0 when the device starts it, then Done or Failed.

        Its pictures are decoded at once, while the device is busy with others: a broken one is told before its turn.
        """
        task = Task(run, self._speak, total=run.parameters.steps * len(run.seeds))
        if attachments:
            task.inputs = self._decoders.submit(inputs.read, run, attachments)
        with self._wake:
            self._tasks.append(task)
            self._wake.notify()
        if task.inputs:
            task.inputs.add_done_callback(lambda read: self._decoded(task, read))

    def cancel(self, job: str, attempt: int) -> None:
        """Stop this attempt at its next step, or before it starts; it answers Failed(cancelled)."""
        with self._wake:
            for task in (*self._tasks, *([self._current] if self._current else [])):
                if (task.run.job, task.run.attempt) == (job, attempt):
                    task.cancelled = True
            waiting = [task for task in self._tasks if task.cancelled]
            self._tasks = deque(task for task in self._tasks if not task.cancelled)
        for task in waiting:
            if task.inputs:
                task.inputs.cancel()
            self._fail(task, Cancelled("cancelled before it started"))

    def _decoded(self, task: Task, read: Future[Inputs]) -> None:
        """Where the pictures of `task` cannot be read, it need not wait for its turn to hear that."""
        if read.cancelled() or not read.exception():
            return
        with self._wake:
            if task not in self._tasks:
                return
            self._tasks.remove(task)
        self._fail(task, _problem(task))

    def resident(self) -> tuple[Resident, ...]:
        """The models held, with their states."""
        held = list(self._held.values())
        return tuple(Resident(model=h.model.id, epoch=h.model.epoch, digest=h.model.digest) for h in held if h.backend)

    def memory_bytes(self) -> int:
        """What the resident models hold, in bytes, as counted when they were loaded."""
        return sum(held.outcome.memory_bytes for held in list(self._held.values()))

    def _work(self) -> None:
        while True:
            with self._wake:
                self._current = None
                self._wake.wait_for(lambda: self._stopping or self._wanted or self._tasks)
                if self._stopping:
                    break
                wanted, self._wanted = self._wanted, None
                if wanted is None:
                    self._current = self._tasks.popleft()
            try:
                if wanted is not None:
                    self._reconcile(wanted)
                elif self._current is not None:
                    self._serve(self._current)
            except DeviceLost as error:
                # Every later call would fail too. The gateway runs the job elsewhere and starts a new process here.
                log.error("device_lost", problem=str(error))
                os._exit(EXIT_DEVICE_LOST)
            except Exception:
                # A bug of ours: a worker without its engine would answer pings for ever and never draw again.
                log.exception("engine_died")
                os._exit(EXIT_DEVICE_LOST)
        for name in list(self._held):
            self._release(name)

    def _reconcile(self, wanted: Wanted) -> None:
        models = {model.id: model for model in wanted.models}
        for name, held in list(self._held.items()):
            if models.get(name) != held.model or held.backend is None:
                self._release(name)
        for model in wanted.models:
            if model.id not in self._held:
                self._held[model.id] = self._load(model)
        outcomes = tuple(self._held[model.id].outcome for model in wanted.models)
        self._speak(Ack(version=wanted.version, outcomes=outcomes), ())

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

    def _serve(self, task: Task) -> None:
        run = task.run
        held = self._held.get(run.model)
        if held is None or held.backend is None or (held.model.epoch, held.model.digest) != (run.epoch, run.digest):
            self._fail(task, Behind(f"{run.model} is not held in epoch {run.epoch}"))
            return
        started = time.monotonic()
        task.progress()
        try:
            given = task.inputs.result() if task.inputs else Inputs()
        except Exception:
            self._fail(task, _problem(task))
            return
        try:
            if task.cancelled:
                raise Stopped
            pictures = held.backend.generate(
                run,
                given,
                lambda step, total: self._stepped(task, step, total),
                lambda index, pixels: self._show(task, index, pixels),
            )
        except Stopped:
            self._fail(task, Cancelled("cancelled"))
            return
        except DeviceLost:
            raise
        except MemoryError:
            self._fail(task, OutOfMemory("the picture does not fit in this machine's memory"))
            return
        except ReplicastError as error:
            self._fail(task, error)
            return
        except Exception as error:
            # What a pipeline raises is its own affair: the log has it whole, the client a code.
            log.exception("run_failed", job=run.job, request=run.request_id)
            self._fail(task, JobFailed(f"the pipeline failed with {type(error).__name__}"))
            return
        timings = Timings(wait_ms=(started - task.taken) * 1000, inference_ms=(time.monotonic() - started) * 1000)
        self._encoding.acquire()
        if all(picture.encoded is not None for picture in pictures):
            # There is nothing to encode: a hop to another thread would cost more than it saves.
            self._encode(task, pictures, timings)
        else:
            self._encoders.submit(self._encode, task, pictures, timings)

    def _stepped(self, task: Task, step: int, total: int) -> None:
        if task.cancelled:
            raise Stopped
        now = time.monotonic()
        # A step that is told again is a sign of life and no progress.
        self.steps += max(0, step - task.step)
        task.step, task.total = max(task.step, step), total
        if now - task.reported >= _PROGRESS_SECONDS:
            task.reported = now
            task.progress()

    def _show(self, task: Task, index: int, pixels: Pixels) -> None:
        """Send a preview, unless the encoders have enough to do: it must never hold up a picture."""
        if self._showing.acquire(blocking=False):
            earlier = task.previews[-1:]
            task.previews.append(self._encoders.submit(self._encode_preview, task, index, pixels, earlier))

    def _encode_preview(self, task: Task, index: int, pixels: Pixels, earlier: list[Future[None]]) -> None:
        run = task.run
        try:
            data = finishing.preview(pixels, run)
        except Exception:
            log.exception("preview_failed", job=run.job, request=run.request_id)
            return
        finally:
            self._showing.release()
        # A later one that is encoded sooner would make this one old news. The earlier one was begun before this one.
        wait(earlier)
        if not task.cancelled:
            task.progress(index, [data])

    def _encode(self, task: Task, pictures: list[Picture], timings: Timings) -> None:
        run = task.run
        started = time.monotonic()
        try:
            encoded = [finishing.encoded(picture, run) for picture in pictures]
            # They were begun before; nobody may hear of a picture that is to come after it has come.
            wait(task.previews)
        except Exception:
            log.exception("encode_failed", job=run.job, request=run.request_id)
            self._fail(task, JobFailed("the picture cannot be encoded"))
            return
        finally:
            self._encoding.release()
        facts = tuple(finishing.facts(picture, run, data) for picture, data in zip(pictures, encoded, strict=True))
        timings = timings.model_copy(update={"encode_ms": (time.monotonic() - started) * 1000})
        done = Done(job=run.job, attempt=run.attempt, images=facts, timings=timings, tokens=finishing.tokens(pictures))
        task.end(done, encoded)

    def _fail(self, task: Task, error: ReplicastError) -> None:
        task.end(Failed(job=task.run.job, attempt=task.run.attempt, problem=Problem.of(error)))


def _problem(task: Task) -> ReplicastError:
    """Why the pictures of `task` cannot be read."""
    assert task.inputs is not None
    error = task.inputs.exception()
    if isinstance(error, ReplicastError):
        return error
    log.error("decode_failed", job=task.run.job, request=task.run.request_id, exc_info=error)
    return JobFailed("the pictures to work from cannot be read")
