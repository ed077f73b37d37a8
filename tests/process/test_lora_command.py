"""`replicast lora` on a real server with two replicas: as the README prints it, refused, and after a restart."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adapters import layers
from tests.house.readme import block
from tests.loras import sha256, write
from tests.server import ROOT, Serve, Server, command, environment, until

INK, OIL = layers(1), layers(2)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(tmp_path / "files" / "styles" / "ink.safetensors", INK)
    write(tmp_path / "files" / "oil.safetensors", OIL)
    write(tmp_path / "files" / "cut.safetensors", INK[:-10])
    return tmp_path / "files"


Lora = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def lora(runtime: Path) -> Lora:
    """Runs `replicast lora` to its end, against a server."""

    def run(server: Server, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("lora", *args, "--url", server.address),
            cwd=ROOT,
            env=environment(runtime),
            capture_output=True,
            text=True,
            timeout=60.0,
        )

    return run


def started(serve: Serve, files: Path, data: Path) -> Server:
    return serve("--device", "stub:2", "--model", "shapes", "--lora-root", str(files), data_dir=data)


def test_the_commands_of_the_readme(serve: Serve, files: Path, runtime: Path, tmp_path: Path) -> None:
    server = started(serve, files, tmp_path / "data")
    replicast = f"{shlex.quote(sys.executable)} -m gateway"
    printed = block("test_the_commands_of_the_readme").code.replace(".venv/bin/replicast", replicast)
    lines = [f"{line} --url {server.address}" for line in printed.strip().splitlines()]
    # The stub's family is its own.
    script = "\n".join(lines).replace("--family flux2-klein", "--family stub")
    ended = subprocess.run(
        f"set -e\n{script}",
        shell=True,
        cwd=ROOT,
        env=environment(runtime),
        capture_output=True,
        text=True,
        timeout=100.0,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "shapes: epoch 1, attached, every replica has it" in ended.stdout
    assert "  ink   0.8    all     " + sha256(INK)[:12] in ended.stdout
    assert ended.stdout.count("  yes       -") == 2
    assert "imported/ink\n" in ended.stdout
    assert ended.stdout.endswith("imported/ink is removed.\n")


def test_a_lora_of_the_catalogue_is_set_kept_and_found_again(
    serve: Serve, lora: Lora, files: Path, tmp_path: Path
) -> None:
    server = started(serve, files, tmp_path / "data")
    ended = lora(server, "import", "oil.safetensors", "--name", "Oil", "--family", "stub", "--model", "shapes")
    assert ended.stdout == "imported/oil\n", ended.stderr
    (files / "oil.safetensors").unlink()
    ended = lora(server, "set", "imported/oil@0.5")
    assert ended.returncode == 0, ended.stderr
    refused = lora(server, "rm", "imported/oil")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is active on shapes" in refused.stderr
    server.signal(signal.SIGKILL)
    until(lambda: server.status is not None, "the gateway's end")
    server = started(serve, files, tmp_path / "data")
    view = json.loads(lora(server, "list", "--json").stdout)
    [adapter] = view["wanted"]["adapters"]
    assert (adapter["sha256"], adapter["scale"], view["converged"]) == (sha256(OIL), 0.5, True)
    assert "imported/oil" in lora(server, "list", "--imported").stdout


@pytest.fixture(scope="module")
def idle(serve_for_all: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server on which nothing is ever set."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "cut.safetensors", INK[:-10])
    return serve_for_all("--device", "stub:2", "--model", "shapes", "--lora-root", str(folder))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("set", "x=cut.safetensors"), "The LoRA 'cut.safetensors' cannot be taken. It is cut off."),
        (("set", "x=../../etc/passwd"), "There is no such LoRA file below the folder of LoRAs (lora_root)."),
        (("set", "x=s3://bucket/x.safetensors"), "Nothing is fetched from S3 here (lora_s3)."),
        (("set", "x", "--model", "nobody"), "The model 'nobody' does not exist."),
        (("rm", "imported/none"), "There is no LoRA 'imported/none' in the catalogue."),
        (("inspect", "none.safetensors"), "The LoRA 'none.safetensors' cannot be taken."),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_moves(
    idle: Server, lora: Lora, args: tuple[str, ...], said: str
) -> None:
    ended = lora(idle, *args)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert json.loads(lora(idle, "list", "--json").stdout)["wanted"]["epoch"] == 0
