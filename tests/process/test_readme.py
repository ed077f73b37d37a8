"""The README's commands, run as they are printed: only the address and the folder are the test's own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import settings
from gateway.cli import app
from shared import sources
from shared.errors import ConfigError
from tests import scorer
from tests.house.readme import block
from tests.server import ROOT, Serve, Server, environment, until

pytestmark = pytest.mark.model
_ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(serve_for_all: Serve) -> Iterator[Server]:
    return serve_for_all("--num-gpus", "1")


def run(code: list[str] | str, server: Server, folder: Path) -> None:
    done = subprocess.run(
        code,
        shell=isinstance(code, str),
        cwd=folder,
        env=environment(server.runtime),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expect_drawn(path: Path, prompt: str) -> None:
    score = scorer.score(path.read_bytes(), scorer.parse(prompt))
    assert score.colour, score
    assert score.background, score
    assert score.position, score


def test_the_curl_line(server: Server, tmp_path: Path) -> None:
    run(block("test_the_curl_line").code.replace(_ADDRESS, server.address), server, tmp_path)
    expect_drawn(tmp_path / "out.png", "a red circle on a blue background")


def test_the_curl_line_that_the_server_prints(server: Server, tmp_path: Path) -> None:
    printed = re.search(r"^  try +(curl .*?)\n  stop", server.output, re.MULTILINE | re.DOTALL)
    assert printed
    run(printed[1], server, tmp_path)
    expect_drawn(tmp_path / "out.png", "a red circle on a blue background")


def test_the_openai_client(server: Server, tmp_path: Path) -> None:
    code = block("test_the_openai_client").code.replace(_ADDRESS, server.address)
    run([sys.executable, "-c", code], server, tmp_path)
    for number in range(2):
        expect_drawn(tmp_path / f"star-{number}.png", "a yellow star on a black background")
    assert (tmp_path / "star-0.png").read_bytes() != (tmp_path / "star-1.png").read_bytes()


def test_the_command(server: Server, tmp_path: Path) -> None:
    line = block("test_the_command").code.replace(".venv/bin/replicast", f"{shlex.quote(sys.executable)} -m gateway")
    run(f"{line.strip()} --url {server.address}", server, tmp_path)
    expect_drawn(tmp_path / "triangle.png", "a green triangle on a white background")


def test_edits_and_previews(server: Server, tmp_path: Path) -> None:
    code = block("test_edits_and_previews").code.replace(_ADDRESS, server.address)
    run([sys.executable, "-c", code], server, tmp_path)
    expect_drawn(tmp_path / "edited.png", "a green circle on a blue background")
    expect_drawn(tmp_path / "star.png", "a yellow star on a black background")
    assert sorted(path.name for path in tmp_path.glob("star-preview-*.png")) == [
        f"star-preview-{index}.png" for index in range(3)
    ]


def test_serving_your_own() -> None:
    """Each line means what it says: its flags are parsed by the command, and its models by their sources."""
    import typer.main

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in block("test_serving_your_own").code.strip().splitlines():
        words = shlex.split(line)
        if words[:2] == ["make", "serve"]:
            words = ["replicast", "serve", *shlex.split(words[2].removeprefix("ARGS="))]
        _, name, *rest = words
        flags = commands[name].make_context(name, rest).params
        if name == "serve":
            flags.pop("config")
            chosen = settings.load(flags | {"model": tuple(flags["model"] or ("shapes",))})
            for source in chosen.model:
                if source not in ("shapes", "stub"):
                    # The folders are the reader's own: here they are missed by name.
                    with pytest.raises(ConfigError, match="/models/"):
                        sources.parse(source)


@pytest.mark.slow
def test_the_two_commands(runtime: Path, tmp_path: Path) -> None:
    """`make serve` on a checkout that is set up; `make test` is what runs this."""
    serve, test = block("test_the_two_commands").code.strip().splitlines()
    planned = subprocess.run([*shlex.split(test), "-n"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pytest" in planned
    out = tmp_path / "out"
    with out.open("wb") as file:
        made = subprocess.Popen(
            [*shlex.split(serve), f"ARGS=--port 0 --num-gpus 1 --data-dir {tmp_path / 'data'}"],
            cwd=ROOT,
            env=environment(runtime),
            stdout=file,
            start_new_session=True,
        )
    try:
        ready = until(lambda: re.search(r"^ready (\S+)$", out.read_text(), re.MULTILINE), "the ready line", 100)
        assert ready[1].startswith("http://127.0.0.1:")
    finally:
        os.killpg(made.pid, signal.SIGTERM)
        made.wait(40)
