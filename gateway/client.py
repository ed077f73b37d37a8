"""`replicast generate`: pictures from a running server, or from one that is started and stopped for the call."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import BadInput, Internal, NotReady, ReplicastError

_LOCAL = "http://127.0.0.1:8000"
_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 620.0
_STOP_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What to make; None leaves a field to the server."""

    prompt: str
    model: str | None = None
    seed: int | None = None
    n: int = 1
    size: str | None = None
    steps: int | None = None


def generate(wish: Wish, output: Path, url: str | None) -> list[Path]:
    """Make the pictures and write them, with a number in the name if there are several. Raises a ReplicastError."""
    if not output.parent.is_dir():
        raise BadInput(f"{output.parent} is no folder", param="output")
    body = {name: value for name, value in asdict(wish).items() if value is not None} | {"response_format": "b64_json"}
    suffix = output.suffix.lower().lstrip(".").replace("jpg", "jpeg")
    if suffix in ("png", "jpeg", "webp"):
        body["output_format"] = suffix
    if url is not None or _is_replicast(_LOCAL):
        answer = _ask((url or _LOCAL).rstrip("/").removesuffix("/v1"), body)
    else:
        with _server(wish.model) as address:
            answer = _ask(address, body)
    paths = []
    for index, row in enumerate(answer["data"], 1):
        path = output if len(answer["data"]) == 1 else output.with_stem(f"{output.stem}-{index}")
        path.write_bytes(base64.b64decode(row["b64_json"]))
        paths.append(path)
    return paths


def _ask(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise _said(error) from error
    except (OSError, ValueError) as error:
        raise NotReady(f"{address} does not answer: {error}") from error


def _said(error: urllib.error.HTTPError) -> ReplicastError:
    try:
        message = str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {error.code} {error.reason}"
    return BadInput(message) if error.code < 500 else NotReady(message)


def _is_replicast(address: str) -> bool:
    """Whether a Replicast server answers here: something else may listen on its usual port."""
    try:
        with urllib.request.urlopen(f"{address}/v1/models?all=true", timeout=_LOOK_SECONDS) as response:
            rows = json.load(response)["data"]
            return any(row.get("owned_by") == "replicast" for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _server(model: str | None) -> Iterator[str]:
    """A server of our own on a free port and a data folder of its own, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="replicast-") as folder:
        command = [
            sys.executable,
            "-m",
            "gateway",
            "serve",
            "--port",
            "0",
            "--data-dir",
            folder,
            "--num-gpus",
            "1",
            "--log-level",
            "error",
        ]
        if model:
            command += ["--model", model]
        sys.stderr.write("no server is running; starting one for this call\n")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            yield _address(process)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        word, _, address = line.partition(" ")
        if word == "ready":
            return address.strip()
    raise Internal(f"the server ended before it was ready, with exit status {process.wait()}")
