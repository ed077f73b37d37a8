"""`replicast doctor`: what of this machine fits, what does not, and how to mend it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from gateway.client import is_replicast
from gateway.home import Home
from gateway.settings import Settings
from shared import devices
from shared.errors import ConfigError

_TORCH_SECONDS = 120
_LEAST_MEMORY_BYTES = 4 << 30
_LEAST_DISK_BYTES = 2 << 30
_LOOK = """
import json, torch, diffusers, transformers
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available(),
                  "diffusers": diffusers.__version__, "transformers": transformers.__version__}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: fine, worth knowing, or wrong, with what to do about it."""

    mark: str
    subject: str
    found: str
    advice: str = ""


def examine(port: int, data_dir: Path | None) -> int:
    """Print every finding; the exit status is 1 if something is wrong."""
    findings = list(_findings(port, data_dir))
    for finding in findings:
        sys.stdout.write(f"{finding.mark:<5} {finding.subject:<10} {finding.found}\n")
        if finding.advice:
            sys.stdout.write(f"{'':<16} -> {finding.advice}\n")
    return int(any(finding.mark == "WRONG" for finding in findings))


def _findings(port: int, data_dir: Path | None) -> Iterator[Finding]:
    yield _python()
    gpus, finding = _gpus()
    yield from _libraries(bool(gpus))
    yield finding
    yield _port(port)
    folder = data_dir or Settings.model_fields["data_dir"].get_default(call_default_factory=True)
    yield _data(folder)
    yield _memory()
    yield _disk(folder)


def _python() -> Finding:
    # Too old a Python has failed before this line: the package refuses to be installed on it.
    return Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")


def _libraries(gpus: bool) -> Iterator[Finding]:
    """What a worker would import, asked of a process of its own: this one stays without torch."""
    try:
        looked = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=_TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        yield Finding(
            "WRONG", "torch", f"not imported within {_TORCH_SECONDS} s", "the disk may be very slow: try again"
        )
        return
    if looked.returncode:
        last = (looked.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("WRONG", "torch", last, "pip install 'replicast[worker]' (the stub runs without: --device stub)")
        return
    facts = json.loads(looked.stdout)
    yield Finding(
        "ok", "torch", f"{facts['torch']}, diffusers {facts['diffusers']}, transformers {facts['transformers']}"
    )
    if gpus and not facts["available"]:
        build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built without CUDA"
        yield Finding(
            "WRONG",
            "cuda",
            f"there are GPUs, but torch, {build}, sees none",
            "install a torch build that fits the driver",
        )


def _gpus() -> tuple[tuple[devices.Gpu, ...], Finding]:
    try:
        gpus = devices.visible_gpus()
    except ConfigError as error:
        advice = "unset CUDA_VISIBLE_DEVICES, or name GPUs that are there"
        return (), Finding("WRONG", "gpu", error.message, advice)
    found = ", ".join(f"{gpu.name}: {gpu.model}, {gpu.memory_bytes >> 30} GiB" for gpu in gpus)
    if gpus:
        return gpus, Finding("ok", "gpu", found)
    kind = "Apple's GPU" if devices.has_mps() else f"none; replicas share {devices.cpu_count()} CPU core(s)"
    return (), Finding("note", "gpu", kind)


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if is_replicast(f"http://127.0.0.1:{port}"):
                return Finding("ok", "port", f"{port}: Replicast is running here")
            return Finding(
                "WRONG",
                "port",
                f"{port}: {error.strerror}",
                f"stop what listens there, or serve with --port {port + 1}",
            )
    return Finding("ok", "port", f"{port} is free")


def _data(folder: Path) -> Finding:
    try:
        with Home(folder) as home:
            return Finding("ok", "data", str(home.folder))
    except ConfigError as error:
        if "in use by a running gateway" in error.message:
            return Finding("note", "data", f"{folder}: a running gateway has it")
        return Finding("WRONG", "data", error.message, "give a --data-dir that is yours")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available >> 20} MiB of {memory.total >> 20} MiB are free"
    if memory.available < _LEAST_MEMORY_BYTES:
        return Finding(
            "note", "memory", found, "each CPU replica of the embedded model takes about 600 MiB: use --num-gpus 1"
        )
    return Finding("ok", "memory", found)


def _disk(folder: Path) -> Finding:
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    found = f"{free >> 30} GiB free at {place}"
    if free < _LEAST_DISK_BYTES:
        return Finding("WRONG", "disk", found, "make room, or give a --data-dir on another disk")
    return Finding("ok", "disk", found)
