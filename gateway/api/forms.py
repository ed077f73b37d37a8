"""A multipart body, in the spellings that clients have for it, to fields and files. Nothing touches the disk."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.api import body
from shared.errors import BadInput, UnsupportedMedia

_MAX_FIELDS = 128
_MAX_FILES = 32
_MAX_TEXT_BYTES = 256 << 10
# name[], name[0], name[key], name[key][deeper]
_NAME = re.compile(r"([^\[\]]{1,100})((?:\[[^\[\]]{0,100}\])*)")
_INDEX = re.compile(r"\[\d*\]")


@dataclass(slots=True)
class Form:
    """Texts by name, those of `name[key]` as objects; files by name, all of a name in the order in which they came."""

    texts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


class _Parser(MultiPartParser):
    """starlette's parser, held to the end of the form, and without the disk: a picture would be read back at once."""

    spool_max_size = 1 << 62
    _ended = False

    async def parse(self) -> FormData:
        self.stream = self._to_its_end(self.stream)
        return await super().parse()

    def on_headers_finished(self) -> None:
        # Only a `filename` makes a part a file there; some clients write it in another charset, or leave it out.
        part = self._current_part
        disposition = part.content_disposition or b""
        kind = dict(part.item_headers).get(b"content-type", b"").lower()
        if b"filename*" in disposition.lower() or kind.startswith(b"image/"):
            _, said = parse_options_header(disposition)
            if b"filename" not in said:
                part.content_disposition = disposition + b'; filename=""'
        super().on_headers_finished()

    def on_end(self) -> None:
        self._ended = True

    async def _to_its_end(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            yield piece
        # Raised in here, since a parser that fails closes what it has opened.
        if not self._ended:
            raise BadInput("The request body is cut short: its form does not end.")


async def read(request: Request, most_bytes: int) -> Form:
    """The form in a request's body. Raises UnsupportedMedia for another, BadInput for a broken one, and TooLarge."""
    if body.media_type(request) != "multipart/form-data":
        raise UnsupportedMedia("Send the request as multipart/form-data.")
    parser = _Parser(
        Headers(scope=request.scope),
        body.chunks(request, most_bytes),
        max_files=_MAX_FILES,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_TEXT_BYTES,
    )
    try:
        parsed = await parser.parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        # LookupError: a charset that does not exist.
        raise BadInput("The request body is not a valid form.") from error
    form = Form()
    try:
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                form.files.setdefault(_plain(name), []).append(await value.read())
            else:
                _put(form, name, value)
    finally:
        await parsed.close()
    return form


def _plain(name: str) -> str:
    """A file's field without the brackets that say that there may be several."""
    return _INDEX.sub("", name[:200])


def _put(form: Form, name: str, value: str) -> None:
    matched = _NAME.fullmatch(name)
    if matched is None:
        form.texts.setdefault(name[:200], value)
        return
    plain, keys = matched[1], re.findall(r"\[([^\[\]]*)\]", matched[2])
    if not keys:
        if form.texts.setdefault(plain, value) != value:
            raise BadInput(f"'{plain[:64]}' is given twice.", param=plain[:64])
    elif keys == [""] or keys[0].isdecimal():
        texts = form.texts.setdefault(plain, [])
        if isinstance(texts, list):
            texts.append(value)
    else:
        texts = form.texts.setdefault(plain, {})
        if isinstance(texts, dict):
            texts[keys[0]] = value
