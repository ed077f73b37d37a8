"""The page: the plain files of gateway/web, served with a policy that lets nothing else in."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from gateway.api import access

router = access.router(access.PUBLIC, include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "web"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'"
)
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}


def _serve(path: str, name: str, kind: str) -> None:
    content = (_FOLDER / name).read_bytes()
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache", "referrer-policy": "no-referrer"}

    @router.get(path, name=name)
    async def file() -> Response:
        return Response(content, headers=headers, media_type=kind)


for _path, (_name, _kind) in _FILES.items():
    _serve(_path, _name, _kind)
