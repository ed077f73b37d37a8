"""The one place that knows HTTP statuses: every error of ours, and every one of the framework's, in OpenAI's shape."""

from __future__ import annotations

import math
import random

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from shared import errors, logs
from shared.errors import ReplicastError

STATUS: dict[type[ReplicastError], int] = {
    errors.BadInput: 400,
    errors.BadJson: 400,
    errors.UnknownParameter: 400,
    errors.BadImage: 400,
    errors.InvalidAdapter: 400,
    errors.AdapterMisfit: 400,
    errors.UnsupportedSize: 400,
    errors.UnsupportedOperation: 400,
    errors.InvalidKey: 401,
    errors.WrongRole: 403,
    errors.OriginRefused: 403,
    errors.UnknownModel: 404,
    errors.UnknownWorker: 404,
    errors.UnknownJob: 404,
    errors.UnknownAdapter: 404,
    errors.RouteNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.TooSlow: 408,
    errors.LoraRefused: 409,
    errors.AdapterInUse: 409,
    errors.StateChanged: 409,
    errors.Gone: 410,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.Misdirected: 421,
    errors.UnequalLists: 422,
    errors.QueueFull: 429,
    errors.RateLimited: 429,
    errors.Cancelled: 499,
    errors.JobFailed: 500,
    errors.InvalidOutput: 500,
    errors.LoadFailed: 500,
    errors.LoraFailed: 500,
    errors.WireError: 500,
    errors.ConfigError: 500,
    errors.Internal: 500,
    errors.ReplicaFailed: 502,
    errors.Poison: 502,
    errors.NotReady: 503,
    errors.Draining: 503,
    errors.SourceUnavailable: 503,
    errors.Behind: 503,
    errors.Expired: 504,
    errors.OutOfMemory: 507,
    errors.StorageFull: 507,
}
_KINDS = {404: "not_found_error", 429: "rate_limit_error"}

log = logs.get("http")


def answer(error: ReplicastError, headers: dict[str, str] | None = None) -> Response:
    """The response for an error, all four keys in it."""
    status = STATUS[type(error)]
    headers = dict(headers or {})
    if error.retry_after_seconds is not None:
        # Spread, so that a crowd that was refused together does not come back together; and rounded by chance, up the
        # more often the more is cut off, since a whole second more would be half as long again where two are meant.
        meant = error.retry_after_seconds * random.uniform(1.0, 1.1)
        headers["retry-after"] = str(min(60, max(1, math.floor(meant + random.random()))))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in (507, 502, 500) or (status == 429 and error.retry_after_seconds is None):
        # Trying again would only repeat it: a client's automatic retry is told not to.
        headers["x-should-retry"] = "false"
    return Response(body(error), status, headers, media_type="application/json")


def told(scope: Scope, error: ReplicastError, headers: dict[str, str] | None = None) -> Response:
    """As `answer`, and entered into the story of the request."""
    if story := scope.get("state", {}).get("story"):
        story.code = error.code
    return answer(error, headers)


def body(error: ReplicastError) -> bytes:
    """OpenAI's error object, for an answer or, once that has begun, for an event in it."""
    status = STATUS[type(error)]
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}})


def install(app: FastAPI) -> None:
    """Answer every error of this app in our shape."""
    app.add_exception_handler(ReplicastError, _ours)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _bug)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, ReplicastError)
    return told(request.scope, error)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = logs.redact(request.url.path[:200])
    known: dict[int, ReplicastError] = {
        404: errors.RouteNotFound(f"There is nothing at {path}."),
        405: errors.MethodNotAllowed(f"{request.method[:16]} is not allowed on {path}."),
        413: errors.TooLarge("The request body is too large."),
    }
    failure = known.get(error.status_code) or errors.BadInput("The request cannot be understood.")
    return told(request.scope, failure, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    place = error.errors()[0]["loc"] if error.errors() else ()
    return told(request.scope, errors.BadInput("The request is not valid.", param=str(place[-1]) if place else None))


async def _bug(request: Request, error: Exception) -> Response:
    # The trace is logged by the front; the client gets a request id to quote.
    return told(request.scope, errors.Internal("The server made a mistake; the log has it under this request's id."))
