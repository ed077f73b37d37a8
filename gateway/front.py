"""The outermost layer of the server: request ids, timing, security headers, one line and one count per answer."""

from __future__ import annotations

import re
import secrets
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.intake import Intake
from gateway.metrics import Metrics
from shared import logs

# What a client may call its request: anything else could forge a header or a log line.
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

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
        scope.setdefault("state", {})["request_id"] = request_id
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

        with structlog.contextvars.bound_contextvars(request=request_id):
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
            log.debug(
                "answered", method=scope["method"], path=scope["path"][:200], status=status, ms=round(seconds * 1000, 1)
            )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return f"req_{secrets.token_hex(12)}"
