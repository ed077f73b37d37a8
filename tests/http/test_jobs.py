"""Jobs while they wait and while they are made: their place, when they may be there, and who may see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.keys import KeyFile, Role
from tests.http.conftest import Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(root: Path) -> AsyncIterator[Gateway]:
    """A gateway with one worker, so that places in the queue are what they are."""
    async with running(root / "narrow", workers=1) as made:
        yield made


async def listed(gateway: Gateway, query: str = "", **headers: str) -> list[dict[str, Any]]:
    answer = await gateway.http.get(f"/v1/jobs{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def test_a_job_shows_its_place_and_when_its_picture_may_be_there(narrow: Gateway) -> None:
    await narrow.post(model="first", prompt="so that costs are known", seed=1)
    narrow.script.go.clear()
    asked = [
        asyncio.create_task(
            narrow.http.post(
                "/v1/images/generations",
                json={"model": "first", "prompt": f"cat {index}", "seed": 1},
                headers={"x-request-id": f"mine-{index}"},
            )
        )
        for index in range(4)
    ]
    try:
        async with asyncio.timeout(10):
            while len(rows := await listed(narrow)) < 4 or rows[0]["started_at"] is None:
                await asyncio.sleep(0.01)
        # One runs, one is handed ahead, and two wait in their order.
        assert [row["status"] for row in rows] == ["running", "running", "queued", "queued"]
        assert [row["position"] for row in rows] == [None, None, 1, 2]
        etas = [row["eta_seconds"] for row in rows]
        assert 0 <= etas[0] <= etas[2] <= etas[3] < 60
        assert all(row["object"] == "job" and row["kind"] == "generation" for row in rows)
        assert (rows[0]["replica"], rows[2]["replica"]) == ("w0", None)
        [mine] = await listed(narrow, "?request=mine-3")
        assert mine["request"] == "mine-3"
        alone = await narrow.http.get(f"/v1/jobs/{mine['id']}")
        assert alone.json()["position"] == 2
    finally:
        narrow.script.go.set()
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    assert await listed(narrow) == []
    gone = await narrow.http.get(f"/v1/jobs/{mine['id']}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "job_not_found")


async def test_nobody_sees_the_jobs_of_another_key(root: Path) -> None:
    keys = KeyFile(root / "keyed")
    mine, other, admin = (keys.create(role)[1] for role in (Role.INFERENCE, Role.INFERENCE, Role.ADMIN))

    def shown(secret: str) -> dict[str, str]:
        return {"authorization": f"Bearer {secret}"}

    async with running(root / "keyed", workers=1, ready=False) as gateway:
        async with asyncio.timeout(10):
            while (await gateway.http.get("/v1/models/first", headers=shown(mine))).json()["replicas_ready"] != 1:
                await asyncio.sleep(0.01)
        gateway.script.go.clear()
        body = {"model": "first", "prompt": "a cat"}
        asked = asyncio.create_task(gateway.http.post("/v1/images/generations", json=body, headers=shown(mine)))
        try:
            async with asyncio.timeout(10):
                while not (rows := await listed(gateway, **shown(mine))):
                    await asyncio.sleep(0.01)
            assert await listed(gateway, **shown(other)) == []
            assert await listed(gateway, **shown(admin)) == rows
            foreign = await gateway.http.get(f"/v1/jobs/{rows[0]['id']}", headers=shown(other))
            assert foreign.status_code == 404
        finally:
            gateway.script.go.set()
            assert (await asked).status_code == 200
