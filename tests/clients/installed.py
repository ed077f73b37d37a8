"""Clients that are not ours, each kind in a folder of its own: installed once, at the versions committed here.

Where they cannot be fetched a test is skipped and says so; whatever else keeps them from being installed fails it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "clients"
NPM_SECONDS = 80.0
PIP_SECONDS = 480.0
_CALL_SECONDS = 60.0
_OLDEST_NODE = 20
# What npm and pip say where there is no way to what they want; everything else that they say is news.
_UNREACHABLE = re.compile(
    r"ENOTFOUND|ECONNREFUSED|ECONNRESET|EAI_AGAIN|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT"
    r"|NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|Max retries exceeded"
)


def node_modules() -> Path:
    """The folder of the npm clients. Skips without Node, npm or a network."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30).stdout
    if int(version.lstrip("v").partition(".")[0]) < _OLDEST_NODE:
        pytest.skip(f"node is {version.strip()}: these clients need {_OLDEST_NODE} or newer")

    def make(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=1")
        _install(["npm", "ci", *quiet], folder, NPM_SECONDS)

    return _kept("node", ("package-lock.json",), make) / "node_modules"


def interpreter() -> Path:
    """A Python with the PyPI clients, and nothing of ours in it. Skips without a network."""

    def make(folder: Path) -> None:
        # Its interpreter may be moved together with its folder; programs in bin may not, and are not used.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:", "--retries", "1")
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", *quiet]
        _install([*pip, "-r", str(HERE / "requirements.txt")], folder, PIP_SECONDS)

    return _kept("python", ("requirements.txt",), make) / "bin" / "python"


def javascript(modules: Path, folder: Path, script: str, *args: str, said: object) -> list[dict[str, Any]]:
    """The lines that a script of this folder prints when it is told `said`; `folder` is a test's own."""
    here = folder / "node"
    here.mkdir(exist_ok=True)
    # A script finds packages beside itself or above, and nowhere else.
    with suppress(FileExistsError):
        (here / "node_modules").symlink_to(modules)
    shutil.copy(HERE / script, here)
    return _lines(["node", str(here / script), *args], said)


def python(interpreter: Path, script: str, *args: str, said: object) -> list[dict[str, Any]]:
    """The same for a script in Python."""
    return _lines([str(interpreter), "-I", str(HERE / script), *args], said)


def _lines(command: list[str], said: object) -> list[dict[str, Any]]:
    # The machine's proxies are not for 127.0.0.1.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    ran = subprocess.run(
        command, input=json.dumps(said), capture_output=True, text=True, timeout=_CALL_SECONDS, env=environment
    )
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _kept(kind: str, made_of: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """The folder that `make` has filled from these files, now or in an earlier run."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in made_of)).hexdigest()[:12]
    kept = CACHE / f"{kind}-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"
    if not kept.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{kind}-", dir=CACHE) as new:
            folder = Path(new) / kind
            folder.mkdir()
            make(folder)
            # Another run may have been first: then its folder is as good.
            with suppress(OSError):
                folder.rename(kept)
    return kept


def _install(command: list[str], folder: Path, seconds: float) -> None:
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{command[0]} did not fetch the clients within {seconds:.0f} s")
    if ran.returncode and _UNREACHABLE.search(ran.stdout + ran.stderr):
        pytest.skip("the clients cannot be fetched: there is no network")
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
