"""The whole gateway in this process: HTTP by ASGI, the pool and the socket real, the workers scripted."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from starlette.types import ASGIApp

from gateway import app, settings
from gateway.api.state import State
from gateway.home import Home
from gateway.launchers import Slot
from shared.cards import ModelCard, Size, SizeRule
from tests.http.scripted import Script

SMALL, LARGE = Size(width=256, height=256), Size(width=512, height=512)
CARDS = {
    "first": ModelCard(
        family="free",
        revision="1",
        tasks=("generate", "edit", "inpaint", "variation"),
        max_images=3,
        max_masked_images=2,
        scheduler="euler",
        sizes=SizeRule(default=SMALL, max_side=1024, max_pixels=1024 * 1024),
        steps=4,
        max_steps=500,
        guidance=3.5,
        max_guidance=10.0,
        negative_prompt=True,
    ),
    "org/second": ModelCard(
        family="strict",
        revision="2",
        tasks=("generate",),
        sizes=SizeRule(default=SMALL, allowed=(SMALL, LARGE), native=SMALL, enlargement="nearest"),
        steps=8,
        max_steps=8,
        guidance=1.0,
        max_guidance=1.0,
        negative_prompt=False,
        vocabulary=("red", "circle"),
    ),
}


@dataclass
class Gateway:
    """A running gateway: a client of it, what is behind its routes, and what its workers do."""

    http: httpx2.AsyncClient
    state: State
    script: Script
    asgi: ASGIApp

    async def post(self, **body: Any) -> httpx2.Response:
        return await self.http.post("/v1/images/generations", json=body)

    async def samples(self) -> list[str]:
        """The series of /metrics, each by its name and labels."""
        text = (await self.http.get("/metrics")).text
        return [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]


@asynccontextmanager
async def running(folder: Path, *, ready: bool = True, workers: int = 2, **changed: Any) -> AsyncIterator[Gateway]:
    """A gateway with these settings, two models that can be served and one that cannot."""
    named = {"model": ("first=stub", "org/second=stub", "third=stub"), "ping_seconds": 0.05, "gone_after_pings": 400}
    slots = tuple(Slot(f"w{index}", "stub", (str(index),), 1) for index in range(workers))
    script = Script(CARDS)
    with Home(folder) as home:
        asgi, state = app.create(settings.load(named | changed), slots, home, script.launcher)
        async with _alive(asgi):
            transport = httpx2.ASGITransport(app=asgi)  # type: ignore[arg-type]
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", timeout=30.0) as http:
                gateway = Gateway(http, state, script, asgi)
                while ready and (await http.get("/v1/models/first")).json()["replicas_ready"] != workers:
                    await asyncio.sleep(0.005)
                yield gateway


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder for data folders, with the sockets beside them: their paths have to be short."""
    path = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(path))
            yield path
        assert not list(path.glob("replicast-*")), "a socket folder is left"
    finally:
        shutil.rmtree(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(root: Path) -> AsyncIterator[Gateway]:
    """One gateway for all the tests of a file."""
    async with running(root / "data") as made:
        yield made


@asynccontextmanager
async def _alive(asgi: ASGIApp) -> AsyncIterator[None]:
    """The app's lifespan, as a server runs it."""
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(asgi({"type": "lifespan"}, to_app.get, from_app.put))  # type: ignore[arg-type]
    to_app.put_nowait({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        to_app.put_nowait({"type": "lifespan.shutdown"})
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        await life
