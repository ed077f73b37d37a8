"""Workers as child processes of this one, started by exec and gone with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass

import orjson

from gateway.launchers import Slot
from shared import environment, logs

_LAST_LINES = 50
# A line that is JSON has its whole trace in it.
_LINE_BYTES = 64 << 10
_LINES_PER_SECOND = 100
# A worker gets what its libraries need to run, and no secret that happens to be in our environment.
_PASSED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONWARNINGS",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "SSL_CERT_FILE",
)
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "ROCR_", "HIP_", "HSA_", "MKL_", "COVERAGE_")

log = logs.get("launcher")


@dataclass(frozen=True, slots=True)
class Local:
    """Starts `python -m worker` on this machine, dialling `endpoint`."""

    endpoint: str
    log_level: str
    log_format: str

    async def launch(self, slot: Slot, token: str) -> Process:
        """Start a worker. Call it from the main thread: the kernel ties a child's life to the thread that spawns it."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Without it the folder we were started in comes first, and a `worker` in there would be run.
            "-P",
            "-m",
            "worker",
            env=self._environment(slot, token),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # In a session of its own: Ctrl-C in our terminal is ours to handle, and a kill can take the whole group.
            start_new_session=True,
            limit=_LINE_BYTES,
        )
        return Process(process, slot.name, as_json=self.log_format == "json")

    def _environment(self, slot: Slot, token: str) -> dict[str, str]:
        passed = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith(_PASSED_PREFIXES)}
        if slot.kind == "cuda":
            passed["CUDA_VISIBLE_DEVICES"] = ",".join(slot.devices)
        elif slot.kind in ("cpu", "stub"):
            passed["CUDA_VISIBLE_DEVICES"] = ""
        threads = str(slot.threads)
        return passed | {
            environment.ENDPOINT: self.endpoint,
            environment.NAME: slot.name,
            environment.TOKEN: token,
            environment.DEVICE: f"{slot.kind}:{','.join(slot.devices)}",
            environment.THREADS: threads,
            environment.PARENT: str(os.getpid()),
            environment.LOG_LEVEL: self.log_level,
            environment.LOG_FORMAT: self.log_format,
            # Left alone, every process takes every core, and N replicas get a fraction of one.
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DIFFUSERS_VERBOSITY": "error",
            "TRANSFORMERS_VERBOSITY": "error",
        }


class Process:
    """A worker process. Its standard error is always drained, since a full pipe would stop it.

    What it writes is passed on; `as_json`, what is no JSON, as of a library in C, becomes a line of ours.
    """

    def __init__(self, process: asyncio.subprocess.Process, name: str, *, as_json: bool) -> None:
        self._process = process
        self._name, self._as_json = name, as_json
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._second = self._passed = 0
        self._drain = asyncio.create_task(self._read())
        self.pid = process.pid

    async def wait(self) -> int:
        """Its exit status, after its last words were read."""
        status = await self._process.wait()
        # A grandchild may hold the pipe open.
        await asyncio.wait([self._drain], timeout=1.0)
        self._drain.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to its whole group, so that nothing it started outlives it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> list[str]:
        """The last lines of its standard error, redacted."""
        return list(self._lines)

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:
                # Longer than the limit: what has been read of it is dropped.
                continue
            if not line:
                return
            text = logs.redact(line.decode(errors="replace").rstrip())
            self._lines.append(text)
            if not self._may_pass():
                continue
            if self._as_json and not _is_json(text):
                log.warning("worker_said", worker=self._name, text=text)
            else:
                # Ours may be closed; the worker's pipe must be drained all the same.
                with contextlib.suppress(OSError):
                    sys.stderr.write(text + "\n")

    def _may_pass(self) -> bool:
        """Whether one more line may go to our own standard error: 100 a second, so that a flood cannot hold us up."""
        second = int(time.monotonic())
        if second != self._second:
            if self._passed > _LINES_PER_SECOND:
                log.warning("worker_lines_dropped", worker=self._name, lines=self._passed - _LINES_PER_SECOND)
            self._second, self._passed = second, 0
        self._passed += 1
        return self._passed <= _LINES_PER_SECOND


def _is_json(line: str) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
