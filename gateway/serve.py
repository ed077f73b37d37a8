"""Runs the server: binds first, says where it is, drains on the first signal, leaves at once on the second."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import json
import resource
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn

from gateway import app
from gateway.api.state import State
from gateway.health import readiness
from gateway.home import Home
from gateway.intake import Connections
from gateway.keys import KeyFile
from gateway.protocol import BoundedProtocol
from gateway.settings import Settings
from gateway.slots import plan
from shared import devices, logs
from shared.errors import ConfigError

_LOOK_SECONDS = 0.05
_BACKLOG = 2048
_DESCRIPTORS = 65_536
# malloc.h's names for what mallopt can be told.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

log = logs.get("serve")


def serve(settings: Settings) -> int:
    """Serve until told to stop; returns the exit status. Raises ConfigError for what keeps it from starting."""
    logs.setup(settings.log_level, settings.log_format)
    _expect_keys(settings)
    _keep_freed_memory()
    gpus = [gpu.name for gpu in devices.visible_gpus()] if settings.device in ("auto", "cuda") else []
    cores, mps = devices.cpu_count(), devices.has_mps()
    slots = plan(settings, gpus=gpus, cores=cores, mps=mps)
    possible = plan(settings.model_copy(update={"num_gpus": None}), gpus=gpus, cores=cores, mps=mps)
    with contextlib.closing(_bind(settings)) as listener, Home(settings.data_dir) as home:
        asgi, state = app.create(settings, slots, home, possible=possible)
        config = uvicorn.Config(
            asgi,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=5,
            # Longer than a balancer keeps a connection that it may use again.
            timeout_keep_alive=75,
            ws="none",
            http=_protocol(state.connections),
        )
        server = _Server(config)
        address = _address(settings.host, listener)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_run(server, state, listener, address))
        # What kept the app from starting is in the log.
        return 0 if server.started else 1


def _protocol(connections: Connections) -> type[BoundedProtocol]:
    """The protocol with this server's bounds: descriptors have to be left for workers, files and the log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY:
        connections.most = min(connections.most, soft * 4 // 5)

    class Protocol(BoundedProtocol):
        counted = connections

    return Protocol


def _expect_keys(settings: Settings) -> None:
    """Before anybody can reach us: those who are elsewhere need a key to be let in by."""
    if settings.allow_anonymous or _is_loopback(settings.host) or KeyFile(settings.data_dir).read():
        return
    raise ConfigError(
        f"--host {settings.host} can be reached by others and there is no key: make one with "
        "`replicast token create --role inference`, or add --allow-anonymous if that is meant",
        param="host",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keep_freed_memory() -> None:
    """Tell glibc to reuse a picture's buffers: given back at once, each of their pages would be faulted in again."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 << 20)


class _Server(uvicorn.Server):
    """uvicorn with our signals: its own would be raised again at the end, and the exit status would be theirs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(server: _Server, state: State, listener: socket.socket, address: str) -> None:
    loop = asyncio.get_running_loop()
    leaving = asyncio.Event()

    def told() -> None:
        if leaving.is_set():
            log.warning("leaving_now")
            state.loras.hurry()
            state.serving.hurry()
            state.traces.hurry()
            # Not force_exit: that skips the end of the lifespan, and with it our own.
            server.config.timeout_graceful_shutdown = 0
        leaving.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    helpers = [
        asyncio.create_task(_announce(server, state, address)),
        asyncio.create_task(_leave(server, state, leaving)),
    ]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in helpers:
            task.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)


async def _announce(server: _Server, state: State, address: str) -> None:
    """Say where we are as soon as we listen, and that we are ready as soon as that is true."""
    serving, model = state.serving, state.default_model
    request = json.dumps({"model": model, "prompt": "a red circle on a blue background", "size": "512x512"})
    show = ' -H "Authorization: Bearer $REPLICAST_API_KEY"' if state.auth.needs_keys else ""
    await _until(lambda: server.started)
    _say(f"""
  Replicast  {address}
  serving    {_models(state)}, replicas: {len(serving.supervisor.facts)}; wait for `ready`
  page       {address}/
  try        curl -sSf {address}/v1/images/generations{show} -d {shlex.quote(request)} \\
               | sed 's/.*"b64_json":"\\([^"]*\\)".*/\\1/' | base64 -d > out.png
  stop       Ctrl-C
""")
    began = time.monotonic()
    await _until(lambda: readiness(serving.pool, serving.supervisor.facts)[0])
    # What lives as long as the server is never garbage: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    log.info("ready", seconds=round(time.monotonic() - began, 1))
    _say(f"ready {address}")


def _models(state: State) -> str:
    models = state.serving.pool.wanted.models
    return ", ".join(f"{m.id} (the stub)" if m.backend == "stub" else m.id for m in models)


async def _leave(server: _Server, state: State, leaving: asyncio.Event) -> None:
    """Once told to leave: refuse new work, finish what was accepted within its time, then let the server end."""
    await leaving.wait()
    serving, seconds = state.serving, state.settings.drain_seconds
    log.info("draining", jobs=len(serving.pool.jobs), seconds=seconds)
    serving.drain()
    try:
        async with asyncio.timeout(seconds):
            await _until(lambda: serving.idle and state.loras.idle)
    except TimeoutError:
        log.warning("drain_timeout", jobs=len(serving.pool.jobs))
        serving.abandon()
        state.loras.hurry()
    server.should_exit = True


async def _until(true: Callable[[], bool]) -> None:
    """Wait for what has no event of its own: it happens once in a server's life."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Two that start at once can both bind, and only one can listen: uvloop would not say so.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            "give another --port, or 0 for a free one",
            param="port",
        ) from error
    listener.set_inheritable(False)
    return listener


def _address(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
