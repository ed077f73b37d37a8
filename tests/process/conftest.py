"""Servers for the process tests, and the guard: when a test has ended, nothing that it started is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.adapters import layers
from tests.clients import installed
from tests.guard import guarded
from tests.server import Serve, Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.process)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder for the sockets of a test, with a short path, since a socket's is limited to 107 bytes.

    It is also the guard: no process that was started with it, no socket and no shared memory outlives the test.
    """
    with guarded() as folder:
        yield folder


@pytest.fixture
def serve(runtime: Path, tmp_path: Path, clients: ThreadPoolExecutor) -> Iterator[Serve]:
    # After the clients, so that in a test that fails they end with their server.
    with _serving(runtime, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def serve_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """As `serve`, for a server that the tests of one file share."""
    with guarded() as runtime, _serving(runtime, tmp_path_factory.mktemp("server")) as start:
        yield start


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags for models that fail, each in its way: at once, in mid-stream, never done, never ready."""
    never = tmp_path_factory.mktemp("gate") / "never"
    models = (
        "failing=stub?fail_at_step=1",
        "breaking=stub?steps=2&step_seconds=1&fail_at_step=2",
        f"held=stub?gate={never}",
        "absent=stub?fail_load=true",
    )
    return tuple(word for model in models for word in ("--model", model))


@pytest.fixture(scope="module")
def artists(serve_for_all: Serve, troubles: tuple[str, ...]) -> Server:
    """A server for clients: the model in the box, the stub, one with a slash in its name, and the troubles."""
    drawing = ("--model", "shapes", "--model", "stub", "--model", "org/second=stub")
    return serve_for_all("--device", "cpu", *drawing, *troubles, max_queue=4)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The npm clients. Once a session, so that one without a network hears of it once."""
    return installed.node_modules()


@pytest.fixture(scope="session")
def interpreter() -> Path:
    """A Python with the PyPI clients."""
    return installed.interpreter()


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that are made at the same time."""
    with ThreadPoolExecutor(32, thread_name_prefix="client") as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that is not there: steps of a stub that has it as its `gate` are held until it is made."""
    return tmp_path / "gate"


@contextmanager
def _serving(runtime: Path, folder: Path) -> Iterator[Serve]:
    """A maker of servers; all of them have ended when the block has, and their logs must be free of tracebacks."""
    servers: list[Server] = []
    with ExitStack() as stack:

        def start(
            *args: str,
            ready: bool = True,
            data_dir: Path | None = None,
            env: Mapping[str, str] | None = None,
            **settings: object,
        ) -> Server:
            own = folder / f"server{len(servers)}"
            own.mkdir()
            server = Server(own, runtime, *args, data_dir=data_dir, env=env, **settings)
            servers.append(server)
            stack.enter_context(server)
            if ready:
                return server.wait_ready()
            assert server.address
            return server

        yield start
    for server in servers:
        assert "Traceback" not in server.log, server.log


@pytest.fixture
def lora_folder(tmp_path: Path) -> Path:
    """A folder of LoRAs whose names are what becomes of them on a stub with FAULTS."""
    loras = tmp_path / "loras"
    loras.mkdir()
    for seed, name in enumerate(("ink", "oil", "refused", "broken", "leaky", "deadly", "fatal")):
        (loras / f"{name}.safetensors").write_bytes(layers(seed))
    return loras
