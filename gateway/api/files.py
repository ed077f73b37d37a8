"""GET /v1/images/files/{name}: the picture behind a `url` result, for who has its signed path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import BinaryIO

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway import results
from gateway.api import access
from gateway.api.schema import failures
from gateway.api.state import State
from gateway.settings import Settings
from shared.errors import Gone

router = access.router(access.PUBLIC)

_PIECE_BYTES = 256 << 10
_TYPES = ("image/png", "image/jpeg", "image/webp")


def absolute(request: Request, settings: Settings, path: str) -> str:
    """The address of one of our paths, for a client to follow: below `public_url`, else by the name it called us."""
    if settings.public_url:
        return settings.public_url.rstrip("/") + path
    return f"{request.url.scheme}://{request.url.netloc}{path}"


@router.get(
    results.PATH + "{name}",
    tags=["images"],
    response_class=Response,
    responses={**failures(404, 410), 200: {"description": "The picture", "content": {kind: {} for kind in _TYPES}}},
)
async def file(request: Request, name: str) -> Response:
    """The picture behind a `url` result. Its address is all the permission it takes."""
    state: State = request.app.state.replicast
    kept = state.results.find(name)
    try:
        opened = await asyncio.to_thread(kept.path.open, "rb")
    except FileNotFoundError as error:
        raise Gone("This image has expired.") from error
    headers = {
        "content-type": f"image/{kept.form}",
        "content-length": str(os.fstat(opened.fileno()).st_size),
        "content-disposition": f'inline; filename="image-{kept.id[:8]}{kept.path.suffix}"',
        "content-security-policy": "default-src 'none'; sandbox",
        "cache-control": f"private, max-age={kept.seconds_left}",
    }
    return _Whole(opened, headers)


class _Whole(StreamingResponse):
    """An open file, sent whole: swept meanwhile it is still sent, and a slow client holds one piece of it in memory.

    Ranges are not offered: a picture is wanted whole, and what is not there cannot be made to work too hard.
    """

    def __init__(self, opened: BinaryIO, headers: dict[str, str]) -> None:
        super().__init__(self._pieces(), headers=headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._opened:
            await super().__call__(scope, receive, send)

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self._opened.read, _PIECE_BYTES):
            yield piece
