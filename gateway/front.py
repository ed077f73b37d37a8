"""The outermost layer of the server: request ids, timing, security headers, one line and one count per answer."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.intake import Intake
from gateway.metrics import Metrics
from gateway.story import Story
from shared import logs

# What a client may call its request: anything else could forge a header or a log line.
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Answers below it cost work and are told each; of others there may be many, and they are told to who looks closely.
_TOLD = ("/v1/images/", "/sdapi/v1/txt2img", "/sdapi/v1/img2img")

log = logs.get("http")


class Front:
    """Wraps the whole app, errors included; what escapes it is logged here and nowhere else."""

    def __init__(self, app: ASGIApp, metrics: Metrics, intake: Intake) -> None:
        self._app = app
        self._metrics = metrics
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # Wherever GET may ask; the server sends no body, since its own scope still says HEAD.
            scope = {**scope, "method": "GET"}
        began = time.monotonic()
        request_id = _request_id(scope)
        story = Story(request_id)
        scope.setdefault("state", {}).update(request_id=request_id, story=story)
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = int((time.monotonic() - began) * 1000)
                message.setdefault("headers", []).extend(
                    (
                        (b"x-request-id", request_id.encode()),
                        (b"openai-processing-ms", b"%d" % elapsed_ms),
                        (b"x-content-type-options", b"nosniff"),
                    )
                )
            await send(message)

        with logs.about(request=request_id), self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, stamped)
            except Exception:
                # The app has answered 500 already; the trace belongs to the log.
                log.exception("unhandled", path=scope["path"][:200])
            finally:
                self._intake.release(scope["state"])
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if story.code:
                self._metrics.errors.labels(story.code).inc()
            log.log(
                _level(route, status),
                "answered",
                method=scope["method"],
                route=route,
                status=status,
                ms=round(seconds * 1000, 1),
                **story.fields(),
            )


def _level(route: str, status: int) -> int:
    if not route.startswith(_TOLD):
        return logging.DEBUG
    return logging.WARNING if status >= 500 else logging.INFO


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return f"req_{secrets.token_hex(12)}"
