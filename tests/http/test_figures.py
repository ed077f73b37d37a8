"""The figures of /metrics: that they are true, as documented, in good form, and that no client can make one."""

from __future__ import annotations

import asyncio
import random
import shutil
import string
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.house.figures import series
from tests.http.conftest import Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def figures(gateway: Gateway) -> dict[tuple[str, ...], float]:
    """Each sample by its name and its labels' values, in the order of the labels' names."""
    families = text_string_to_metric_families((await gateway.http.get("/metrics")).text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_the_figures_can_be_read(gateway: Gateway) -> None:
    await gateway.post(prompt="a cat", n=2)
    answer = await gateway.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = await figures(gateway)
    assert values["replicast_worker_state", "ready", "w0"] == values["replicast_worker_in_step", "w0"] == 1
    assert values["replicast_model_ready_replicas", "first"] == 2
    assert values["replicast_model_ready_replicas", "third"] == 0
    assert values["replicast_term",] == 1
    assert values["replicast_images_total", "first"] == values["replicast_jobs_finished_total", "first", "succeeded"]
    assert values["replicast_images_total", "first"] >= 2
    assert values["replicast_http_requests_total", "/v1/images/generations", "200"] >= 1
    assert values["replicast_http_requests_in_flight",] == 1, "this very one"


async def test_every_sample_is_as_documented(gateway: Gateway) -> None:
    await gateway.post(prompt="a cat")
    await gateway.post(prompt="a cat", model="nonsense")
    documented = series()
    for family in text_string_to_metric_families((await gateway.http.get("/metrics")).text):
        for sample in family.samples:
            assert sample.labels.keys() == documented[sample.name], sample


async def test_promtool_finds_nothing_to_say(gateway: Gateway) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool, of Debian's package prometheus, is not on this machine")
    await gateway.post(prompt="a cat")
    text = (await gateway.http.get("/metrics")).content
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30)
    assert (checked.returncode, checked.stderr) == (0, b""), checked


async def test_the_phases_of_a_picture_are_counted_by_model(root: Path) -> None:
    async with running(root / "phases") as gateway:
        await gateway.post(prompt="a cat", n=3)
        values = await figures(gateway)
        assert values["replicast_image_phase_seconds_sum", "first", "inference"] == pytest.approx(3 * 0.002)
        assert values["replicast_image_phase_seconds_sum", "first", "encode"] == pytest.approx(3 * 0.003)
        for phase in ("queue", "dispatch", "inference", "encode"):
            assert values["replicast_image_phase_seconds_count", "first", phase] == 3


async def test_what_waits_and_runs_is_told_while_it_does(root: Path) -> None:
    async with running(root / "busy") as gateway:
        gateway.script.go.clear()
        busy = [asyncio.create_task(gateway.post(prompt="a cat")) for _ in range(10)]
        try:
            while len(gateway.state.serving.pool.jobs) < 10:
                await asyncio.sleep(0)
            values = await figures(gateway)
            assert values["replicast_http_requests_in_flight",] == 11
            # Of each worker one that runs and one handed ahead.
            assert values["replicast_jobs", "first", "running"] == 4
            assert values["replicast_jobs", "first", "queued"] == 6
            assert values["replicast_worker_jobs", "w0"] == 2
            # A second each, as nothing is known yet, on two workers.
            assert values["replicast_queue_predicted_wait_seconds", "first"] == pytest.approx(5, abs=1)
            assert values["replicast_http_body_bytes",] > 0
            await asyncio.sleep(0.2)
            assert (await figures(gateway))["replicast_worker_step_age_seconds", "w0"] >= 0.2
        finally:
            gateway.script.go.set()
        assert {answer.status_code for answer in await asyncio.gather(*busy)} == {200}
        values = await figures(gateway)
        assert values["replicast_worker_step_age_seconds", "w0"] == 0
        assert values["replicast_http_requests_in_flight",] == 1
        assert values["replicast_http_body_bytes",] == 0


async def test_what_is_refused_is_counted_by_its_code(root: Path) -> None:
    async with running(root / "refused", max_queue=1) as gateway:
        gateway.script.go.clear()
        busy = asyncio.create_task(gateway.post(prompt="a cat", n=5))
        try:
            while len(gateway.state.serving.pool.jobs) < 5:
                await asyncio.sleep(0)
            assert (await gateway.post(prompt="a cat")).status_code == 429
        finally:
            gateway.script.go.set()
        assert (await busy).status_code == 200
        await gateway.post(prompt="a cat", model="nonsense")
        await gateway.http.get("/nonsense")
        values = await figures(gateway)
        for code in ("queue_full", "model_not_found", "not_found"):
            assert values["replicast_http_errors_total", code] == 1


async def test_what_was_made_for_nobody_is_counted(root: Path) -> None:
    async with running(root / "nobody") as gateway:
        gateway.script.go.clear()
        left = await gateway.post(prompt="a cat", timeout_seconds=0.3)
        assert left.status_code == 504
        while any(worker.jobs for worker in gateway.state.serving.pool.workers.values()):
            await asyncio.sleep(0.005)
        values = await figures(gateway)
        assert values["replicast_wasted_work_seconds_total", "first", "cancelled"] == pytest.approx(0.4, abs=0.3)
        assert values["replicast_jobs_finished_total", "first", "expired"] == 1


async def test_no_client_can_make_the_figures_grow(gateway: Gateway) -> None:
    dice = random.Random(0)

    def name() -> str:
        return "".join(dice.choices(string.ascii_lowercase, k=12))

    async def ask(kind: int) -> None:
        match kind:
            case 0:
                await gateway.post(prompt="a cat", model=name())
            case 1:
                await gateway.http.get(f"/v1/models/{name()}")
            case 2:
                await gateway.http.get(f"/v1/images/files/{name()}")
            case 3:
                await gateway.http.get(f"/{name()}")
            case 4:
                await gateway.http.request(name()[:9].upper(), "/livez", headers={"x-request-id": name()})
            case _:
                await gateway.post(prompt="a cat", **{name(): name()})

    await gateway.samples()
    for kind in range(6):
        await ask(kind)
    before = await gateway.samples()
    for _ in range(60):
        await asyncio.gather(*(ask(dice.randrange(6)) for _ in range(50)))
    after = await gateway.samples()
    assert len(before) == len(set(before))
    assert set(after) - set(before) == set()
    assert len(after) < 1000
