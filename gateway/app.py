"""The app: its lifespan starts and stops everything long-lived, its routers answer, its front stamps every answer."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from gateway import traces
from gateway.actions import Note
from gateway.api import (
    access,
    adapters,
    admin,
    docs,
    errors,
    files,
    health,
    images,
    jobs,
    loras,
    models,
    page,
    schema,
    sdapi,
    sdapi_lists,
)
from gateway.api.sdapi_desk import Desk
from gateway.api.state import State
from gateway.auth import Auth
from gateway.fetch import Fetcher
from gateway.front import Front
from gateway.gauges import Live
from gateway.guard import Guard
from gateway.home import Home
from gateway.intake import Connections, Intake
from gateway.jobs.job import Job, Outcome
from gateway.keeper import RestartPolicy
from gateway.keys import KeyFile
from gateway.launchers import Launcher, Slot
from gateway.launchers.local import Local
from gateway.limits import Limits
from gateway.loras.broadcast import Broadcast
from gateway.loras.catalogue import Catalogue
from gateway.loras.finder import Finder
from gateway.loras.outcomes import Patience
from gateway.loras.shelf import Shelf
from gateway.metrics import Metrics
from gateway.quota import Quota
from gateway.rates import Rates
from gateway.results import Results
from gateway.serving import Serving
from gateway.settings import Settings
from gateway.store.database import Database
from gateway.store.epochs import Epochs
from gateway.traces import Traces
from shared import logs

_LAG_SECONDS = 0.25
_SWEEP_SECONDS = 30.0
# Of what clients of sdapi ask, only what costs work: they ask how far it is all the time.
_TRACED = ("/v1/", "/sdapi/v1/txt2img", "/sdapi/v1/img2img")

log = logs.get("app")


def create(
    settings: Settings,
    slots: tuple[Slot, ...],
    home: Home,
    launcher: Callable[[str], Launcher] | None = None,
    possible: tuple[Slot, ...] = (),
) -> tuple[ASGIApp, State]:
    """The server as an ASGI app, and the state behind it. `home` is entered; nothing runs before the lifespan.

    `launcher` makes, of the endpoint that workers dial, what starts them; without it they are local processes.
    `possible` are the slots that there could be, for whoever wants more of them later.
    """
    settings.aliases()
    term = home.next_term()
    metrics = Metrics(model.id for model in settings.models())
    tracing = traces.load(os.environ)

    def noted(note: Note, now: float) -> None:
        metrics.noted(note, now)
        tracing.noted(note, now)

    def ended(job: Job, outcome: Outcome, now: float) -> None:
        metrics.ended(job, outcome, now)
        tracing.ended(job, outcome, now)

    serving = Serving(
        settings.models(),
        slots,
        possible=possible,
        limits=_limits(settings),
        policy=_policy(settings),
        term=term,
        socket_folder=home.socket_folder(),
        shelf=home.folder / "loras" / "shelf",
        launcher=launcher or (lambda endpoint: Local(endpoint, settings.log_level, settings.log_format)),
        noted=noted,
        ended=ended,
    )
    results = Results(
        home.folder / "results",
        home.secret(),
        keep_seconds=settings.result_seconds,
        max_bytes=settings.results_max_bytes,
    )
    database = Database(home.folder)
    database.prepare()
    broadcast = Broadcast(
        serving, Epochs(database), Patience(settings.lora_answer_seconds, settings.lora_revert_seconds)
    )
    shelf = Shelf(
        home.folder / "loras" / "shelf",
        max_file_bytes=settings.lora_max_bytes,
        max_bytes=settings.lora_shelf_bytes,
        pinned=broadcast.in_use,
    )
    catalogue = Catalogue(
        home.folder / "loras", max_file_bytes=settings.lora_max_bytes, max_bytes=settings.lora_shelf_bytes
    )
    finder = Finder(
        shelf,
        catalogue,
        root=settings.lora_root,
        s3_prefixes=settings.lora_s3,
        s3_endpoint=settings.s3_endpoint,
        repositories=settings.hub,
    )
    fetcher = Fetcher(enabled=settings.fetch_urls, hosts=settings.fetch_hosts)
    intake, connections = Intake(settings.max_bytes_in_flight), Connections(settings.max_connections)
    metrics.watch(
        Live(
            serving.pool,
            lambda: serving.supervisor.facts,
            intake,
            connections,
            results,
            home.folder,
            started=time.monotonic(),
            term=term,
        )
    )
    rates = Rates()
    state = State(
        settings,
        serving,
        metrics,
        results,
        fetcher,
        intake,
        connections,
        tracing,
        loras=broadcast,
        find_lora=finder.find,
        catalogue=catalogue,
        auth=Auth(KeyFile(home.folder), rates, allow_anonymous=settings.allow_anonymous),
        quota=Quota(rates, max_requests=settings.key_max_requests, images_per_minute=settings.key_images_per_minute),
        created=int(time.time()),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Server.serve() raises the signal again at its end: what is not stopped in here is never stopped.
        async with AsyncExitStack() as stack:
            metrics.watch_loop(asyncio.get_running_loop())
            lag = asyncio.create_task(_watch_lag(metrics))
            stack.callback(lag.cancel)
            sweep = asyncio.create_task(_sweep(results))
            stack.callback(sweep.cancel)
            stack.push_async_callback(tracing.close)
            stack.push_async_callback(database.close)
            await broadcast.restore()
            serving.start()
            stack.push_async_callback(serving.stop)
            stack.push_async_callback(broadcast.stop)
            yield

    app = FastAPI(
        title="Replicast",
        version=version("replicast"),
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's pages load their scripts from elsewhere; ours are in api/docs.py, and the schema has a route there.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=_telemetry(tracing),
    )
    app.openapi = lambda: schema.describe(app)  # type: ignore[method-assign]
    app.state.replicast = state
    errors.install(app)
    for router in (
        images.router,
        files.router,
        models.router,
        jobs.router,
        loras.router,
        loras.listing,
        adapters.router,
        health.router,
        health.figures,
        admin.router,
        docs.router,
        page.router,
        *((sdapi.router, sdapi_lists.router) if settings.enable_sdapi else ()),
    ):
        app.include_router(router)
    app.state.sdapi = Desk()
    access.expect_roles(app)
    return Front(_guarded(app, settings), metrics, state.intake), state


def _guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The app behind its gate, which answers to this machine's names, the public one, and those that are allowed."""
    machine, public = socket.gethostname(), urlsplit(settings.public_url or "")
    names = ("localhost", machine, machine.split(".")[0], settings.host, public.hostname or "")
    return Guard(
        app,
        hosts=(*names, *settings.allowed_hosts),
        origins=settings.allowed_origins,
        own=f"{public.scheme}://{public.netloc}" if settings.public_url else "",
    )


def _telemetry(tracing: Traces) -> TelemetryConfig:
    """FastAPI's spans of requests, where any are made: of health and figures, which are asked for all day, none.

    All that it would do besides, or by variables of its own, is off: figures and logs are ours.
    """
    return {
        "tracing": tracing.provider is not None,
        "tracer_provider": tracing.provider,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": lambda scope: not scope["path"].startswith(_TRACED),
    }


def _limits(settings: Settings) -> Limits:
    return Limits(
        ping_seconds=settings.ping_seconds,
        suspect_after=settings.suspect_after_pings,
        gone_after=settings.gone_after_pings,
        load_seconds=settings.load_seconds,
        hello_seconds=settings.hello_seconds,
        stuck_seconds=settings.stuck_seconds,
        retry_load_seconds=settings.quarantine_seconds,
        prepare_seconds=settings.lora_prepare_seconds,
        max_attempts=settings.max_attempts,
        max_queue=settings.max_queue,
        max_queue_per_key=settings.max_queue_per_key,
        max_queue_seconds=settings.max_queue_seconds,
        max_queue_seconds_per_key=settings.max_queue_seconds_per_key,
        max_batch=settings.max_batch,
    )


def _policy(settings: Settings) -> RestartPolicy:
    return RestartPolicy(
        backoff_seconds=settings.restart_backoff_seconds,
        limit=settings.restart_limit,
        window_seconds=settings.restart_window_seconds,
        retry_seconds=settings.quarantine_seconds,
    )


async def _watch_lag(metrics: Metrics) -> None:
    """Observe how late the loop wakes: the one figure that shows a blocking call."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(_LAG_SECONDS)
        metrics.lag.observe(max(0.0, time.monotonic() - began - _LAG_SECONDS))


async def _sweep(results: Results) -> None:
    """Remove the results that have expired, for as long as the server lives."""
    while True:
        try:
            await results.sweep()
        except OSError:
            log.exception("sweep_failed")
        await asyncio.sleep(_SWEEP_SECONDS)
