"""The interface, to read and to try: Swagger UI at /docs, served from this machine alone."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.resources import files

import orjson
from fastapi import Request
from starlette.responses import Response

from gateway.api import access

router = access.router(access.PUBLIC, include_in_schema=False)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HTML, _CSS, _SCRIPT = ("text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8")
# Of Swagger UI only the files are used: what the package would do to an app, its page does with an inline script.
_SWAGGER = "fastapi_swagger"
_FILES = {
    "/docs": ("gateway", "web/docs.html", _HTML),
    "/docs/start.js": ("gateway", "web/docs.js", _SCRIPT),
    "/docs/swagger-ui.css": (_SWAGGER, "resources/swagger-ui.css", _CSS),
    "/docs/swagger-ui-bundle.js": (_SWAGGER, "resources/swagger-ui-bundle.js", _SCRIPT),
}


@router.get("/openapi.json")
async def schema(request: Request) -> Response:
    """The schema of every route that is described."""
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


@cache
def _read(package: str, name: str) -> bytes:
    return files(package).joinpath(name).read_bytes()


def _serve(path: str, package: str, name: str, kind: str) -> None:
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache", "referrer-policy": "no-referrer"}

    @router.get(path, name=name)
    async def file() -> Response:
        # Megabytes that few ask for: read when the first does.
        content = await asyncio.to_thread(_read, package, name)
        return Response(content, headers=headers, media_type=kind)


for _path, (_package, _name, _kind) in _FILES.items():
    _serve(_path, _package, _name, _kind)
