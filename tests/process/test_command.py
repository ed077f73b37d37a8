"""The `replicast` command as somebody types it: what it prints, its exit status, and never a traceback."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.server import ROOT, Serve, command, environment, processes, until
from worker.backends import stub


@pytest.fixture
def replicast(runtime: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a `replicast` command to its end, with these REPLICAST_ settings."""

    def run(*args: str, env: Mapping[str, str] | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            command(*args),
            cwd=ROOT,
            env=environment(runtime, **settings) | {"XDG_DATA_HOME": str(tmp_path)} | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=45.0,
        )
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended

    return run


Replicast = Callable[..., subprocess.CompletedProcess[str]]


def test_generate_asks_a_running_server(serve: Serve, replicast: Replicast, tmp_path: Path) -> None:
    server = serve("--device", "stub:2")
    ended = replicast(
        *("generate", "a green star", "-o", str(tmp_path / "star.png"), "--url", server.address),
        *("--seed", "3", "--n", "2", "--size", "256x128", "--steps", "2"),
    )
    assert ended.returncode == 0, ended.stderr
    paths = [Path(line) for line in ended.stdout.split()]
    assert [path.name for path in paths] == ["star-1.png", "star-2.png"]
    for place, path in enumerate(paths):
        made_from = stub.read_back(path.read_bytes())
        assert made_from["prompt"] == "a green star"
        assert [made_from[name] for name in ("seed", "width", "height", "steps")] == [3 + place, 256, 128, 2]
    # As an OpenAI client would write it, and in another format.
    ended = replicast("generate", "a star", "-o", str(tmp_path / "star.jpg"), "--url", f"{server.address}/v1/")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "star.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_generate_asks_this_machine_without_a_proxy(serve: Serve, replicast: Replicast, tmp_path: Path) -> None:
    server = serve("--device", "stub:1")
    out = tmp_path / "out.png"
    nowhere = {"http_proxy": "http://127.0.0.1:1", "no_proxy": "", "NO_PROXY": ""}
    ended = replicast("generate", "a star", "-o", str(out), "--url", server.address, env=nowhere)
    assert ended.returncode == 0, ended.stderr
    assert stub.read_back(out.read_bytes())["prompt"] == "a star"


def test_generate_says_what_the_server_said(serve: Serve, replicast: Replicast, tmp_path: Path) -> None:
    server = serve("--device", "stub:1")
    out = tmp_path / "out.png"
    ended = replicast("generate", "a star", "-o", str(out), "--url", server.address, "--model", "nonsense")
    assert ended.returncode == 2
    assert ended.stderr == "replicast: The model 'nonsense' does not exist.\n"
    assert not out.exists()


def test_generate_starts_a_server_where_none_runs(replicast: Replicast, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    ended = replicast("generate", "a blue square", "-o", str(out), "--model", "stub?steps=3", device="stub")
    assert ended.returncode == 0, ended.stderr
    assert "starting one for this call" in ended.stderr
    assert ended.stdout == f"{out}\n"
    made_from = stub.read_back(out.read_bytes())
    assert (made_from["prompt"], made_from["steps"]) == ("a blue square", 3)


def test_generate_says_why_its_own_server_does_not_start(replicast: Replicast, tmp_path: Path) -> None:
    ended = replicast("generate", "x", "-o", str(tmp_path / "out.png"), "--model", "nonsense", device="stub")
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr


def test_generate_does_not_wait_for_a_model_that_cannot_be_loaded(replicast: Replicast, tmp_path: Path) -> None:
    ended = replicast("generate", "x", "-o", str(tmp_path / "out.png"), "--model", "stub?fail_load=true", device="stub")
    assert ended.returncode == 2
    assert "told to fail at loading" in ended.stderr


def test_version_prints_the_version(replicast: Replicast) -> None:
    ended = replicast("version")
    assert (ended.returncode, ended.stdout) == (0, f"{version('replicast')}\n")


def test_help_is_quick(
    replicast: Replicast, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def seconds() -> float:
        began = time.monotonic()
        ended = replicast("--help")
        assert ended.returncode == 0
        assert all(word in ended.stdout for word in ("serve", "generate", "doctor", "version"))
        return time.monotonic() - began

    best = min(seconds() for _ in range(3))
    record_property("help_seconds", round(best, 2))
    with capsys.disabled():
        print(f"\nreplicast --help {best:.2f} s")  # noqa: T201
    assert best < 3.0


def examined(ended: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What the doctor found, mark by subject."""
    return {line.split()[1]: line.split()[0] for line in ended.stdout.splitlines() if not line.startswith(" ")}


def test_doctor_tells_what_is_wrong_and_how_to_mend_it(replicast: Replicast, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = replicast("doctor", "--port", port, "--data-dir", str(tmp_path / "file"))
    assert ended.returncode == 1
    found, lines = examined(ended), ended.stdout.splitlines()
    assert {"python", "torch", "gpu", "port", "data", "memory", "disk"} <= found.keys()
    assert (found["python"], found["torch"]) == ("ok", "ok")
    for subject, advice in (("port", "--port"), ("data", "--data-dir")):
        assert found[subject] == "WRONG"
        at = next(at for at, line in enumerate(lines) if line.split()[1] == subject)
        assert lines[at + 1].strip().startswith("->")
        assert advice in lines[at + 1]


def test_doctor_finds_nothing_wrong_with_a_server_of_ours(serve: Serve, replicast: Replicast) -> None:
    server = serve("--device", "stub:1")
    port = server.address.rpartition(":")[2]
    ended = replicast("doctor", "--port", port, "--data-dir", str(server.data_dir))
    assert ended.returncode == 0, ended.stdout
    assert examined(ended)["port"] == "ok"
    # Looking has harmed nobody.
    server.draw(prompt="a wren")


@pytest.mark.parametrize(
    ("content", "args", "settings", "said"),
    [
        ("prot = 1", [], {}, "did you mean 'port'"),
        ("max_queue = 'x'", [], {}, "--max-queue"),
        ("port = ", [], {}, "is not TOML"),
        ("", [], {"NUM_GPU": "1"}, "did you mean 'num_gpus'"),
        ("", ["--model", "shaeps"], {}, "did you mean 'shapes'"),
        ("", ["--device", "gpu"], {}, "--device"),
        ("", ["--host", "0.0.0.0"], {}, "--allow-anonymous"),
        ("", ["--device", "stub:2", "--num-gpus", "3"], {}, "--num-gpus"),
    ],
    ids=["key", "type", "toml", "variable", "model", "device", "host", "count"],
)
def test_a_wrong_setting_is_one_line_and_no_start(
    replicast: Replicast, tmp_path: Path, content: str, args: list[str], settings: dict[str, str], said: str
) -> None:
    config = tmp_path / "replicast.toml"
    config.write_text(content)
    ended = replicast("serve", "--config", str(config), "--port", "0", *args, **settings)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("replicast: ")
    assert said in line
    assert ended.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_of_a_generate_ends_with_it(runtime: Path, tmp_path: Path, number: int) -> None:
    generating = subprocess.Popen(
        command("generate", "x", "-o", str(tmp_path / "out.png"), "--model", "stub?load_seconds=60"),
        cwd=ROOT,
        env=environment(runtime, device="stub"),
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: len(processes(runtime)) >= 3, "its server and a worker run")
        generating.send_signal(number)
        generating.wait(30)
        until(lambda: not processes(runtime), "nothing of it is left")
        assert not (tmp_path / "out.png").exists()
    finally:
        generating.kill()
