"""A client of a running server, for the commands; `generate` starts one for its call where there is none."""

from __future__ import annotations

import base64
import ctypes
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway import settings
from shared.errors import BadInput, Internal, InvalidKey, NotReady, ReplicastError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}
_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 620.0
_STOP_SECONDS = 40.0
_LOOK_AGAIN_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_ON_ITS_WAY = ("starting", "loading", "backing_off")


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
    address = _meant(url)
    if url is not None or is_replicast(address):
        answer = _ask(address, body)
    else:
        with _server(wish.model) as address:
            # It serves one model, by an id that is not how --model wrote it: a folder, options.
            body.pop("model", None)
            answer = _ask(address, body)
    paths = []
    for index, row in enumerate(answer["data"], 1):
        path = output if len(answer["data"]) == 1 else output.with_stem(f"{output.stem}-{index}")
        path.write_bytes(base64.b64decode(row["b64_json"]))
        paths.append(path)
    return paths


def scale(replicas: int, url: str | None) -> list[str]:
    """Have so many replicas; a line for each worker as it is now. Raises a ReplicastError."""
    answer = ask("POST", "/v1/admin/scale", {"replicas": replicas}, url)
    return [f"{row['id']}  {row['state']}" for row in answer["data"]]


def ask(method: str, path: str, body: dict[str, Any] | None, url: str | None) -> dict[str, Any]:
    """The JSON that the server answers, the usual one without `url`. Raises a ReplicastError in the server's words."""
    return _ask(_meant(url), body, path, method)


def _meant(url: str | None) -> str:
    """The server that is meant: without a word, the one where `serve` would listen with the same settings."""
    if url is None:
        usual = settings.load({})
        url = f"http://{_HERE.get(usual.host, usual.host)}:{usual.port}"
    return url.rstrip("/").removesuffix("/v1")


def _ask(
    address: str, body: dict[str, Any] | None, path: str = "/v1/images/generations", method: str = "POST"
) -> dict[str, Any]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{address}{path}", content, {"content-type": "application/json"} if content else {}, method=method
    )
    key = settings.api_key()
    if key is not None:
        # Not for wherever this address may send us on to.
        request.add_unredirected_header("authorization", f"Bearer {key}")
    try:
        with _open(request, _ANSWER_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        if error.code == 401:
            error.close()
            wrong = (
                "does not take the key that REPLICAST_API_KEY holds" if key else "needs a key: set REPLICAST_API_KEY"
            )
            raise InvalidKey(f"{address} {wrong}") from error
        raise _said(error) from error
    except (OSError, ValueError) as error:
        raise NotReady(f"{address} does not answer: {error}") from error


def _open(request: urllib.request.Request, timeout_seconds: float) -> Any:
    """The answer to `request`; this machine is asked without the proxy that others are asked through."""
    here = urllib.parse.urlsplit(request.full_url).hostname in _LOOPBACK
    proxies = urllib.request.ProxyHandler({} if here else None)
    return urllib.request.build_opener(proxies).open(request, timeout=timeout_seconds)


def _said(error: urllib.error.HTTPError) -> ReplicastError:
    try:
        with error:
            message = str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {error.code} {error.reason}"
    return BadInput(message) if error.code < 500 else NotReady(message)


def is_replicast(address: str) -> bool:
    """Whether a Replicast server answers here: something else may listen on its usual port."""
    try:
        # What needs no key: it is not known yet who would get it.
        with _open(urllib.request.Request(f"{address}/openapi.json"), _LOOK_SECONDS) as response:
            return bool(json.load(response)["info"]["title"] == "Replicast")
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _server(model: str | None) -> Iterator[str]:
    """A server of our own on a free port and a data folder of its own, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="replicast-") as folder:
        command = [
            sys.executable,
            "-P",
            "-m",
            "gateway",
            "serve",
            "--host",
            "127.0.0.1",
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
        sys.stderr.write("no server is running there; starting one for this call (--url asks another)\n")
        # However we end, by a signal too, it ends.
        signal.signal(signal.SIGTERM, _leave)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent)
        try:
            address = _address(process)
            _wait_ready(address, process)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """In the child, before it is a server: ask the kernel to tell it when we are gone, for the end we cannot handle."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        word, _, address = line.strip().partition(" ")
        if word == "Replicast":
            return address.strip()
    raise Internal(f"the server ended before it listened, with exit status {process.wait()}")


def _wait_ready(address: str, process: subprocess.Popen[str]) -> None:
    """Until the server can draw. Raises NotReady, saying why, where it never will."""
    while True:
        if process.poll() is not None:
            raise Internal(f"the server ended before it was ready, with exit status {process.returncode}")
        try:
            with _open(urllib.request.Request(f"{address}/readyz"), _LOOK_SECONDS):
                return
        except urllib.error.HTTPError as error:
            story = json.load(error)
        except OSError:
            # It ends: the next look at the process says so.
            time.sleep(_LOOK_AGAIN_SECONDS)
            continue
        if all(worker["state"] not in _ON_ITS_WAY for worker in story["workers"].values()):
            raise NotReady("; ".join(f"{name}: {model['reason']}" for name, model in story["models"].items()))
        time.sleep(_LOOK_AGAIN_SECONDS)
