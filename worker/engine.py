"""The GPU thread: one thing at a time, between two jobs the wanted state, and at every step a look at who still waits.

The engine owns the backends. It is told by `apply`, `run` and `cancel` from the loop's thread, and speaks through one
callback, in messages: Ack, Prepared, Progress, Done, Failed. Pictures are decoded and encoded, and LoRAs prepared, by
threads of their own, so that the device has its next job while the last one's bytes are made.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from shared import logs
from shared.errors import Cancelled, JobFailed, LoraFailed, OutOfMemory, ReplicastError
from shared.messages import (
    Ack,
    Device,
    Done,
    Failed,
    Prepare,
    Problem,
    Resident,
    Run,
    Timings,
    Wanted,
)
from worker import finishing, inputs
from worker.backends import Backend, Inputs, Picture
from worker.device import DeviceLost
from worker.residents import Residents
from worker.task import Speak, Task

if TYPE_CHECKING:
    from worker.backends import Pixels

# sysexits' EX_SOFTWARE: the device is in a state that no call can mend.
EXIT_DEVICE_LOST = 70
_PROGRESS_SECONDS = 0.1
# A batch's runs are sent together: what is not there after this will not come.
_GATHER_SECONDS = 0.5
# As many as one picture may have: alone, it never loses one.
_PREVIEWS = 3

log = logs.get("engine")


class Stopped(Exception):
    """Raised out of a backend's step when nobody waits for the picture any more."""


class Engine:
    """Owns the models of one slice of devices. `speak` is called from the engine's threads and must be safe there."""

    def __init__(self, device: Device, speak: Speak, *, encode_threads: int) -> None:
        self._speak = speak
        self._wake = threading.Condition()
        self._wanted: Wanted | None = None
        self._tasks: deque[Task] = deque()
        self._current: list[Task] = []
        self._residents = Residents(device)
        self._stopping = False
        self._encoders = ThreadPoolExecutor(encode_threads, thread_name_prefix="encode")
        # Beside them: a finished picture does not wait for those that somebody else has sent.
        self._decoders = ThreadPoolExecutor(1, thread_name_prefix="decode")
        # One state after the other, while the device is busy with pictures.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
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
            for task in self._current:
                task.cancelled = True
            self._wake.notify()
        self._thread.join(timeout_seconds)
        for beside in (self._decoders, self._preparing):
            beside.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=not self._thread.is_alive())
        return not self._thread.is_alive()

    def apply(self, wanted: Wanted) -> None:
        """Reconcile to `wanted` before the next run; answers Ack. A newer state replaces one not yet begun."""
        with self._wake:
            self._wanted = wanted
            self._wake.notify()

    def prepare(self, asked: Prepare) -> None:
        """See whether a model could take on these LoRAs, beside whatever runs; answers Prepared."""
        self._preparing.submit(lambda: self._speak(self._residents.prepare(asked), ()))

    def run(self, run: Run, attachments: Sequence[bytes | memoryview]) -> None:
        """Take a run in hand; answers Progress at step 0 when the device starts it, then Done or Failed.

        Its pictures are decoded at once, while the device is busy with others: a broken one is told before its turn.
        """
        task = Task(run, self._speak, total=run.parameters.steps * len(run.seeds))
        if attachments:
            task.inputs = self._decoders.submit(_within, [task], inputs.read, run, attachments)
        with self._wake:
            self._tasks.append(task)
            self._wake.notify()
        if task.inputs:
            task.inputs.add_done_callback(lambda read: self._decoded(task, read))

    def cancel(self, job: str, attempt: int) -> None:
        """Stop this attempt at its next step, or before it starts; it answers Failed(cancelled)."""
        with self._wake:
            for task in (*self._tasks, *self._current):
                if (task.run.job, task.run.attempt) == (job, attempt):
                    task.cancelled = True
            waiting = [task for task in self._tasks if task.cancelled]
            self._tasks = deque(task for task in self._tasks if not task.cancelled)
        for task in waiting:
            if task.inputs:
                task.inputs.cancel()
            self._fail([task], Cancelled("cancelled before it started"))

    def _decoded(self, task: Task, read: Future[Inputs]) -> None:
        """Where the pictures of `task` cannot be read, it need not wait for its turn to hear that."""
        if read.cancelled() or not read.exception():
            return
        with self._wake:
            if task not in self._tasks:
                return
            self._tasks.remove(task)
        self._fail([task], _within([task], _problem, task))

    def resident(self) -> tuple[Resident, ...]:
        """The models held, with their states."""
        return self._residents.facts()

    def memory_bytes(self) -> int:
        """What the resident models hold, in bytes, as counted when they were loaded."""
        return self._residents.memory_bytes()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._current = []
                self._wake.wait_for(lambda: self._stopping or self._wanted or self._tasks)
                if self._stopping:
                    break
                wanted, self._wanted = self._wanted, None
                tasks = self._next() if wanted is None else []
            _within(tasks, self._turn, wanted, tasks)
        self._residents.release()

    def _turn(self, wanted: Wanted | None, tasks: list[Task]) -> None:
        """Reconcile to this, or serve these; what cannot be mended in here ends the process."""
        try:
            if wanted is not None:
                outcomes = self._residents.reconcile(wanted)
                self._speak(Ack(version=wanted.version, outcomes=outcomes), ())
            else:
                self._serve(tasks)
                # Not before what was raised is gone, and with it the tensors it held.
                self._residents.mend()
        except DeviceLost as error:
            # Every later call would fail too. The gateway runs the job elsewhere and starts a new process here.
            log.error("device_lost", problem=str(error))
            os._exit(EXIT_DEVICE_LOST)
        except Exception:
            # A bug of ours: a worker without its engine would answer pings for ever and never draw again.
            log.exception("engine_died")
            os._exit(EXIT_DEVICE_LOST)

    def _next(self) -> list[Task]:
        """The runs whose turn it is, with the lock held: one, or all of a batch, which come right behind each other."""
        first = self._tasks.popleft()
        self._current = [first]
        if first.run.batch:
            name, size = first.run.batch, first.run.batch_size

            def there() -> bool:
                return self._stopping or sum(task.run.batch == name for task in self._tasks) >= size - 1

            # Not for ever: one that was called off meanwhile does not come.
            self._wake.wait_for(there, _GATHER_SECONDS)
            self._current += [task for task in self._tasks if task.run.batch == name]
            self._tasks = deque(task for task in self._tasks if task.run.batch != name)
        return self._current

    def _serve(self, tasks: list[Task]) -> None:
        started = time.monotonic()
        try:
            backend = self._residents.backend(tasks[0].run)
            for task in tasks:
                task.loras = self._residents.loras(task.run)
            pictures = self._alone(backend, tasks[0]) if len(tasks) == 1 else self._together(backend, tasks)
        except Stopped:
            self._fail(tasks, Cancelled("cancelled"))
            return
        except DeviceLost:
            raise
        except MemoryError:
            self._fail(tasks, OutOfMemory("the picture does not fit in this machine's memory"))
            return
        except ReplicastError as error:
            self._fail(tasks, error)
            if isinstance(error, LoraFailed):
                self._residents.doubt(tasks[0].run.model)
            return
        except Exception as error:
            # What a pipeline raises is its own affair: the log has it whole, the client a code.
            log.exception("run_failed")
            self._fail(tasks, JobFailed(f"the pipeline failed with {type(error).__name__}"))
            return
        ended = time.monotonic()
        for task, made in zip(tasks, pictures, strict=True):
            if task.cancelled:
                self._fail([task], Cancelled("cancelled"))
                continue
            wait_ms, inference_ms = (started - task.taken) * 1000, (ended - started) * 1000
            timings = Timings(wait_ms=wait_ms, inference_ms=inference_ms, batch=len(tasks))
            self._encoding.acquire()
            if all(picture.encoded is not None for picture in made):
                # There is nothing to encode: a hop to another thread would cost more than it saves.
                _within([task], self._encode, task, made, timings)
            else:
                self._encoders.submit(_within, [task], self._encode, task, made, timings)

    def _alone(self, backend: Backend, task: Task) -> list[list[Picture]]:
        """The pictures of one run."""
        task.progress()
        given = _given(task)
        if task.cancelled:
            raise Stopped
        pictures = backend.generate(
            task.run,
            given,
            lambda step, total: self._stepped([task], step, total),
            lambda index, pixels: self._show(task, index, pixels),
        )
        return [pictures]

    def _together(self, backend: Backend, tasks: list[Task]) -> list[list[Picture]]:
        """The one picture of each of several runs, made in one call."""
        for task in tasks:
            task.progress()
        pictures = backend.generate_together(
            [task.run for task in tasks], lambda step, total: self._stepped(tasks, step, total)
        )
        return [[picture] for picture in pictures]

    def _stepped(self, tasks: list[Task], step: int, total: int) -> None:
        if all(task.cancelled for task in tasks):
            raise Stopped
        now = time.monotonic()
        # A step that is told again is a sign of life and no progress; one of a batch is one step of the device.
        self.steps += max(0, step - tasks[0].step)
        for task in tasks:
            task.step, task.total = max(task.step, step), total
            if now - task.reported >= _PROGRESS_SECONDS:
                task.reported = now
                task.progress()

    def _show(self, task: Task, index: int, pixels: Pixels) -> None:
        """Send a preview, unless the encoders have enough to do: it must never hold up a picture."""
        if self._showing.acquire(blocking=False):
            earlier = task.previews[-1:]
            task.previews.append(
                self._encoders.submit(_within, [task], self._encode_preview, task, index, pixels, earlier)
            )

    def _encode_preview(self, task: Task, index: int, pixels: Pixels, earlier: list[Future[None]]) -> None:
        try:
            data = finishing.preview(pixels, task.run)
        except Exception:
            log.exception("preview_failed")
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
            encoded = [finishing.encoded(picture, run, task.loras) for picture in pictures]
            # They were begun before; nobody may hear of a picture that is to come after it has come.
            wait(task.previews)
        except Exception:
            log.exception("encode_failed")
            self._fail([task], JobFailed("the picture cannot be encoded"))
            return
        finally:
            self._encoding.release()
        facts = tuple(finishing.facts(picture, run, data) for picture, data in zip(pictures, encoded, strict=True))
        timings = timings.model_copy(update={"encode_ms": (time.monotonic() - started) * 1000})
        done = Done(job=run.job, attempt=run.attempt, images=facts, timings=timings, tokens=finishing.tokens(pictures))
        task.end(done, encoded)
        log.debug("run_done", attempt=run.attempt, model=run.model, **timings.model_dump())

    def _fail(self, tasks: Sequence[Task], error: ReplicastError) -> None:
        for task in tasks:
            task.end(Failed(job=task.run.job, attempt=task.run.attempt, problem=Problem.of(error)))


def _within(tasks: Sequence[Task], do: Callable[..., Any], *args: object) -> Any:
    """Every line that is written meanwhile says which jobs it is about, and not what was asked."""
    runs = [task.run for task in tasks]
    if not runs:
        return do(*args)
    private = [text for run in runs for text in (run.parameters.prompt, run.parameters.negative_prompt)]
    jobs, requests = (",".join(dict.fromkeys(ids)) for ids in zip(*((r.job, r.request_id) for r in runs), strict=True))
    with logs.about(*private, job=jobs, request=requests):
        return do(*args)


def _given(task: Task) -> Inputs:
    """The pictures that a run works from. Raises what keeps them from being read."""
    try:
        return task.inputs.result() if task.inputs else Inputs()
    except Exception as error:
        raise _problem(task) from error


def _problem(task: Task) -> ReplicastError:
    """Why the pictures of `task` cannot be read."""
    assert task.inputs is not None
    error = task.inputs.exception()
    if isinstance(error, ReplicastError):
        return error
    log.error("decode_failed", exc_info=error)
    return JobFailed("the pictures to work from cannot be read")
