"""What requests hold in memory is counted, bounded, and given back whatever becomes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.http.conftest import running
from tests.pictures import hollow

PICTURE = hollow("png", 256, 256, b"." * 600_000)
FORM = {"image": ("a.png", PICTURE, "image/png")}


async def test_uploads_are_held_until_they_are_answered_and_no_more_than_fit(tmp_path: Path) -> None:
    async with running(tmp_path, max_bytes_in_flight=1 << 20) as gateway:
        intake = gateway.state.intake
        gateway.script.go.clear()
        first = asyncio.create_task(gateway.http.post("/v1/images/edits", files=FORM, data={"prompt": "a cat"}))
        while not gateway.script.runs:
            await asyncio.sleep(0.005)
        assert len(PICTURE) < intake.held_bytes < len(PICTURE) + 2000
        assert f"\nreplicast_http_body_bytes {float(intake.held_bytes)}\n" in (await gateway.http.get("/metrics")).text
        second = await gateway.http.post("/v1/images/edits", files=FORM, data={"prompt": "a cat"})
        assert (second.status_code, second.json()["error"]["code"]) == (429, "queue_full")
        assert second.headers["retry-after"] in ("1", "2")
        assert intake.held_bytes < len(PICTURE) + 2000, "what was refused is not held"
        gateway.script.go.set()
        assert (await first).status_code == 200
        assert intake.held_bytes == 0
        assert (await gateway.http.post("/v1/images/edits", files=FORM, data={"prompt": "a cat"})).status_code == 200
        assert intake.held_bytes == 0


@pytest.mark.parametrize("body", [b'{"prompt": 1}', b"[", b'{"prompt": "a cat", "model": "nonsense"}'])
async def test_what_is_refused_is_given_back(tmp_path: Path, body: bytes) -> None:
    async with running(tmp_path) as gateway:
        assert (await gateway.http.post("/v1/images/generations", content=body)).status_code in (400, 404)
        assert gateway.state.intake.held_bytes == 0
