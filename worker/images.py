"""Pixels to bytes and back. The only file that imports Pillow or isal.

Pixels are uint8 arrays of (height, width, 3) or (height, width, 4), everywhere in a worker; a mask has no third axis.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from shared.cards import ImageFormat, Size
from shared.formats import image_header
from worker.bare import bare

try:
    from isal.isal_zlib import compress as deflate
except ImportError:
    # isal has no wheel for every machine; zlib writes the same pixels in four times the time.
    from zlib import compress as deflate

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Pixels = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {3: 2, 4: 6}
_FILTER_UP = 2
# Pillow advises against JPEG qualities over 95: the file grows and the picture does not get better.
_BEST_JPEG_QUALITY = 95
_FULL_CHROMA_FROM = 90
# A quarter of a gigabyte of pixels; the gateway's own limit is lower, and a setting.
MAX_PIXELS = 1 << 26
# Rows that are converted or mixed at a time.
_BAND = 128
_SMOOTH = 3  # Pillow's Resampling.BICUBIC


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


def decode_strange(data: bytes | memoryview) -> Pixels:
    """The RGB or RGBA pixels of a picture from anywhere, turned as its Exif orientation says.

    Grey, palette, CMYK and 16-bit pictures are converted. Raises ValueError, in words for whoever sent it, if it is no
    whole PNG, JPEG or WebP, moves, or is larger than MAX_PIXELS; its header alone decides that before any decoding.
    """
    from PIL import Image

    header = image_header(data)
    if header is None:
        raise ValueError("it is no PNG, JPEG or WebP image, or its header is damaged")
    if header.animated:
        raise ValueError("it is an animation; send a single frame")
    if not 0 < header.width * header.height <= MAX_PIXELS:
        raise ValueError(f"it has no pixels, or more than {MAX_PIXELS}")
    pixels: Pixels | None = None
    # Before the line below, since what this raises may be told.
    without_more = bare(memoryview(data), header.format)
    try:
        # Pillow would guess among dozens of formats, and what it says of a broken file names addresses.
        with Image.open(io.BytesIO(without_more), formats=(header.format.upper(),)) as image:
            if image.size == (header.width, header.height):
                pixels = _colours(image)
    except Exception as error:
        raise ValueError("it is damaged or cut short") from error
    if pixels is None:
        raise ValueError("its header contradicts itself")
    return np.ascontiguousarray(_TURNS[header.orientation](pixels))


def _colours(image: Image.Image) -> Pixels:
    """Any mode of Pillow's to RGB, or RGBA where something is transparent.

    Band by band: what a conversion needs besides is then little beside the picture.
    """
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    image.load()
    pixels = np.empty((image.height, image.width, 4 if clear else 3), np.uint8)
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            # Pillow would clip 16 bits to 255 where they have to be scaled.
            grey = (np.asarray(band).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            pixels[top : top + _BAND] = 255
            pixels[top : top + _BAND, :, :3] = grey[:, :, None]
        else:
            pixels[top : top + _BAND] = np.asarray(band.convert("RGBA" if clear else "RGB"))
    return pixels


# What undoes each Exif orientation: Exif 2.32, section 4.6.4, tag 274.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


def pillow(pixels: Pixels) -> Image.Image:
    """The picture or mask as pipelines take it."""
    from PIL import Image

    return Image.fromarray(pixels)


def on_white(pixels: Pixels) -> Pixels:
    """RGB: what is transparent shows white."""
    if pixels.shape[2] == 3:
        return pixels
    white = np.broadcast_to(np.uint8(255), pixels[:, :, :3].shape)
    return _mixed(pixels[:, :, :3], white, pixels[:, :, 3])


def resize(pixels: Pixels, size: Size) -> Pixels:
    """The picture or mask at this size: by area where it shrinks, smoothly where it grows."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if (width, height) == (size.width, size.height):
        return pixels
    shrinks = size.width <= width and size.height <= height
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size.width, size.height), Image.Resampling.BOX if shrinks else _SMOOTH))


def cover(pixels: Pixels, size: Size) -> Pixels:
    """The middle of the picture in the shape of `size`, at that size."""
    height, width = pixels.shape[:2]
    scale = min(width / size.width, height / size.height)
    kept_width, kept_height = max(1, round(size.width * scale)), max(1, round(size.height * scale))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return resize(np.ascontiguousarray(pixels[top : top + kept_height, left : left + kept_width]), size)


def grey(pixels: Pixels) -> Pixels:
    """How bright each pixel is (ITU-R BT.601), without a third axis; a grey pixel keeps its value."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("L"))


def blurred(mask: Pixels, radius: int) -> Pixels:
    """The mask with edges that run out over `radius` pixels, as the standard deviation of a Gaussian."""
    if not radius:
        return mask
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius)))


def laid_over(ground: Pixels, picture: Pixels, mask: Pixels) -> Pixels:
    """`picture` where the mask is 255, exactly `ground` where it is 0, a mixture between; all of one size.

    The ground is RGB, and opaque under a picture that is RGBA.
    """
    if picture.shape[2] == 4:
        ground = np.dstack((ground, np.full(ground.shape[:2], 255, np.uint8)))
    return _mixed(picture, ground, mask)


def _mixed(picture: Pixels, ground: Pixels, weight: Pixels) -> Pixels:
    """Both by weight, 255 being all of the picture; band by band, since it takes twice the room of what it makes."""
    mixed = np.empty(picture.shape, np.uint8)
    for top in range(0, len(picture), _BAND):
        rows = slice(top, top + _BAND)
        share = weight[rows, :, None].astype(np.uint16)
        mixed[rows] = (picture[rows] * share + ground[rows] * (255 - share) + 127) // 255
    return mixed


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
