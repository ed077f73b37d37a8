"""What a real browser makes of a page: Chromium, headless, with nothing to reach but the server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.server import Serve

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Long enough for two cores that others keep busy.
PATIENCE_MS = 30_000.0


@dataclass
class Seen:
    """A page, and what its browser had to say of it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@pytest.fixture
def seen() -> Iterator[Seen]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    # No name leads anywhere, and root has no sandbox to give.
    flags = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-dev-shm-usage"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=flags) as browser:
        seen = Seen(browser.new_page())
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("requestfailed", lambda request: seen.wrong.append(f"{request.url}: {request.failure}"))
        seen.page.on("pageerror", lambda error: seen.wrong.append(str(error)))
        seen.page.on(
            "console", lambda said: seen.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        yield seen


def test_the_interface_can_be_read_and_tried_offline(serve: Serve, seen: Seen) -> None:
    server = serve("--device", "stub:1", "--model", "stub")
    seen.page.goto(f"{server.address}/docs", wait_until="networkidle")
    for path in ("/v1/images/generations", "/v1/models", "/readyz"):
        expect(seen.page.locator(f"[data-path='{path}']")).to_be_visible(timeout=PATIENCE_MS)
    models = seen.page.locator(".opblock", has=seen.page.locator("[data-path='/v1/models']"))
    models.locator(".opblock-summary-control").click()
    models.get_by_role("button", name="Try it out").click()
    models.get_by_role("button", name="Execute").click()
    expect(models.locator(".live-responses-table")).to_contain_text('"owned_by": "replicast"', timeout=PATIENCE_MS)
    assert seen.wrong == []
    assert f"{server.address}/v1/models" in seen.requests
    elsewhere = [url for url in seen.requests if not url.startswith((f"{server.address}/", "data:"))]
    assert elsewhere == []
