"""Pixels to bytes and back. The only file that imports Pillow or isal.

Pixels are uint8 arrays of (height, width, 3) or (height, width, 4), everywhere in a worker.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from shared.messages import ImageFormat

try:
    from isal.isal_zlib import compress as deflate
except ImportError:
    # isal has no wheel for every machine; zlib writes the same pixels in four times the time.
    from zlib import compress as deflate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {3: 2, 4: 6}
_FILTER_UP = 2
# Pillow advises against JPEG qualities over 95: the file grows and the picture does not get better.
_BEST_JPEG_QUALITY = 95
_FULL_CHROMA_FROM = 90


def encode(pixels: Pixels, form: ImageFormat, compression: int = 100, parameters: str | None = None) -> bytes:
    """The picture in this format; safe to call from any thread.

    PNG keeps every pixel, takes no notice of `compression`, and carries `parameters` as a text chunk of that name.
    For JPEG and WebP `compression` is the quality from 0 to 100, as OpenAI's `output_compression` is understood by its
    clients: 100 is the best picture. JPEG has no transparency: the picture is laid on white.
    """
    return _ENCODERS[form](pixels, compression, parameters)


def decode(data: bytes) -> Pixels:
    """The pixels of a picture that we made ourselves. It has no limits: never for what a client sent."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.array(image, dtype=np.uint8)


def enlarge(pixels: Pixels, factor: int) -> Pixels:
    """Every pixel as a square of `factor` by `factor` equal ones."""
    if factor == 1:
        return pixels
    # Rows last: they are copied whole, and there are fewer of them to widen.
    return pixels.repeat(factor, axis=1).repeat(factor, axis=0)


def _png(pixels: Pixels, compression: int, parameters: str | None) -> bytes:
    # One fixed filter and a fast deflate: a tenth of the time of Pillow's, which tries five filters on each row.
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = _FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    text = [_text_chunk("parameters", parameters)] if parameters else []
    data = _chunk(b"IDAT", deflate(filtered, 1))
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), *text, data, _chunk(b"IEND", b"")))


def _text_chunk(keyword: str, text: str) -> bytes:
    text = text.replace("\0", "")  # ends a text, in either chunk
    key = keyword.encode("latin-1") + b"\0"
    try:
        return _chunk(b"tEXt", key + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", key + b"\0\0\0\0" + text.encode("utf-8", "replace"))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


def _jpeg(pixels: Pixels, compression: int, parameters: str | None) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels)
    if image.mode == "RGBA":
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        image = ground
    # Coloured edges smear when chroma is halved; at a quality that asks for a good picture it is not.
    subsampling = "4:4:4" if compression >= _FULL_CHROMA_FROM else "4:2:0"
    quality = max(1, round(compression * _BEST_JPEG_QUALITY / 100))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def _webp(pixels: Pixels, compression: int, parameters: str | None) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=compression)
    return out.getvalue()


_ENCODERS: dict[ImageFormat, Callable[[Pixels, int, str | None], bytes]] = {"png": _png, "jpeg": _jpeg, "webp": _webp}
