"""One small picture in every flavour in which Pillow can write our three formats; and the pieces to make worse ones."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 37, 23
PNG = b"\x89PNG\r\n\x1a\n"


def exif(orientation: int, order: str = "<", *, prefix: bool = False, kind: int = 3, count: int = 1) -> bytes:
    """A TIFF structure that says this orientation, and has a thumbnail of another size behind it."""
    thumbnail = saved(Image.new("RGB", (9, 5)), "JPEG")
    short = f"{order}HHIHH"
    first = struct.pack(f"{order}H", 2)
    first += struct.pack(f"{order}HHII", 0x0100, 4, 1, 9999) + struct.pack(short, 0x0112, kind, count, orientation, 0)
    second_at = 8 + len(first) + 4
    data_at = second_at + 2 + 24 + 4
    second = struct.pack(f"{order}H", 2)
    second += struct.pack(f"{order}HHII", 0x0201, 4, 1, data_at)
    second += struct.pack(f"{order}HHII", 0x0202, 4, 1, len(thumbnail)) + struct.pack(f"{order}I", 0)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    tiff = head + first + struct.pack(f"{order}I", second_at) + second + thumbnail
    return b"Exif\0\0" + tiff if prefix else tiff


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """A chunk of a PNG, which may lie about its length."""
    size = struct.pack(">I", len(data) if length is None else length)
    return size + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes, *, before: bytes = b"IDAT") -> bytes:
    at = png.index(before) - 4
    return png[:at] + chunk(kind, data) + png[at:]


def picture(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Noise: so that no format can make it small."""
    drawn = random.Random(0)
    colours = Image.frombytes("RGB", size, drawn.randbytes(size[0] * size[1] * 3))
    if mode == "I;16":
        return Image.frombytes("I;16", size, drawn.randbytes(size[0] * size[1] * 2))
    return colours.convert("RGBA").convert(mode) if mode == "LA" else colours.convert(mode)


def flavours() -> Iterator[tuple[str, bytes]]:
    """Every way in which Pillow can write one of our three formats."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"png {mode}", saved(picture(mode), "PNG")
    yield "png transparent palette", saved(picture("P"), "PNG", transparency=3)
    yield "png text first", with_chunk(saved(picture(), "PNG"), b"tEXt", b"a\0b" * 99, before=b"IDAT")
    yield "apng", saved(picture(), "PNG", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])
    for mode in ("L", "RGB", "CMYK"):
        yield f"jpeg {mode}", saved(picture(mode), "JPEG")
        yield f"jpeg {mode} progressive", saved(picture(mode), "JPEG", progressive=True)
    yield "jpeg with a profile and a comment", saved(picture(), "JPEG", icc_profile=b"i" * 200_000, comment=b"c" * 99)
    yield "jpeg of two", saved(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (200, 100))])
    yield "webp lossy", saved(picture(), "WEBP")
    yield "webp lossless", saved(picture(), "WEBP", lossless=True)
    yield "webp alpha", saved(picture("RGBA"), "WEBP")
    yield "webp lossless alpha", saved(picture("RGBA"), "WEBP", lossless=True)
    yield "webp profile", saved(picture(), "WEBP", icc_profile=b"i" * 999)
    yield "webp animated", saved(picture(), "WEBP", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])
    for orientation in range(1, 9):
        for order, name in (("<", "little"), (">", "big")):
            said = exif(orientation, order)
            prefixed = exif(orientation, order, prefix=True)
            yield f"png {orientation} {name}", saved(picture(), "PNG", exif=said)
            yield f"png behind {orientation} {name}", with_chunk(saved(picture(), "PNG"), b"eXIf", said, before=b"IEND")
            yield f"jpeg {orientation} {name}", saved(picture(), "JPEG", exif=prefixed)
            yield (
                f"jpeg progressive {orientation} {name}",
                saved(picture(), "JPEG", exif=prefixed, progressive=True, icc_profile=b"i" * 100_000),
            )
            yield f"webp {orientation} {name}", saved(picture(), "WEBP", exif=said)
            yield f"webp prefixed {orientation} {name}", saved(picture("RGBA"), "WEBP", exif=prefixed, lossless=True)


FLAVOURS = dict(flavours())


# The pieces of worse ones.


def header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2) -> bytes:
    return PNG + header(width, height, bits, colour) + b"".join(chunks) + chunk(b"IEND", b"")


def data_of(rows: int, width: int) -> bytes:
    """As much as so many rows take."""
    return chunk(b"IDAT", zlib.compress(bytes(rows * (1 + 3 * width)), 9))


def of_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its header."""
    at = re.search(rb"\xff[\xc0\xc2]", jpeg)
    assert at
    return jpeg[: at.start() + 5] + struct.pack(">HH", height, width) + jpeg[at.start() + 9 :]


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan so many times more."""
    jpeg = saved(picture(), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * count + b"\xff\xd9"


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data
