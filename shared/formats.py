"""What an image says of itself in its first bytes: format, size, orientation. Labels and names are never believed.

Nothing is decoded, so a picture that would not fit into memory is known before any of it is there. The layouts are
those of the PNG specification (third edition), ITU-T T.81 with Exif 2.32, and the WebP container specification.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shared.cards import ImageFormat, Size

Bytes = bytes | memoryview

# An orientation of 5 to 8 lies on its side: the picture that people see has width and height exchanged.
_LYING = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
_MAX_SEGMENTS = 1000
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Width and height as stored, the Exif orientation (1 to 8), and whether the file says that it moves."""

    format: ImageFormat
    width: int
    height: int
    orientation: int = 1
    animated: bool = False

    @property
    def size(self) -> Size:
        """The size as people see it, after the rotation."""
        lying = self.orientation in _LYING
        return Size(width=self.height if lying else self.width, height=self.width if lying else self.height)


def image_type(data: Bytes) -> ImageFormat | None:
    """PNG, JPEG or WebP by the magic bytes; None for anything else."""
    head = bytes(data[:12])
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return None


def image_header(data: Bytes) -> ImageHeader | None:
    """What the file says of itself; None if it is no PNG, JPEG or WebP, or its header is not whole.

    Bounded work: at most some thousand headers of chunks are looked at, whatever the file says of their lengths.
    """
    form = image_type(data)
    if form is None:
        return None
    try:
        return _READERS[form](memoryview(data))
    except (struct.error, IndexError, ValueError):
        return None


def _png(data: memoryview) -> ImageHeader | None:
    if bytes(data[12:16]) != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    orientation, animated, at = 1, False, 8
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL":
            animated = True
        elif kind == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        elif kind in (b"IDAT", b"IEND"):
            break
        at += 12 + length
    return ImageHeader("png", width, height, orientation, animated)


def _jpeg(data: memoryview) -> ImageHeader | None:
    orientation, at = 1, 2
    for _ in range(_MAX_SEGMENTS):
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker, kind = data[at], data[at + 1]
        if marker != 0xFF or kind in (0xD9, 0xDA):
            return None
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers that stand alone
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if kind in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return ImageHeader("jpeg", width, height, orientation)
        if kind == 0xE1 and bytes(data[at + 4 : at + 10]) == b"Exif\0\0":
            orientation = _orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    return None


def _webp(data: memoryview) -> ImageHeader | None:
    kind = bytes(data[12:16])
    if kind == b"VP8 ":
        if bytes(data[23:26]) != b"\x9d\x01\x2a":
            return None
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        if data[20] != 0x2F:
            return None
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        return None
    flags = data[20]
    width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    if len(data) < 30:
        return None
    return ImageHeader("webp", width, height, _webp_orientation(data) if flags & 0x08 else 1, bool(flags & 0x02))


def _webp_orientation(data: memoryview) -> int:
    at = 12
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > len(data):
            return 1
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
            # Some writers keep the prefix that JPEG needs.
            return _orientation(exif[6:] if bytes(exif[:6]) == b"Exif\0\0" else exif)
        at += 8 + length + (length & 1)
    return 1


def _orientation(tiff: memoryview) -> int:
    """The orientation in a TIFF structure's first directory; 1 where it says none that there is."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None or len(tiff) < 8:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * min(count, _MAX_SEGMENTS), 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, at)
            if tag == _ORIENTATION_TAG:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


_READERS = {"png": _png, "jpeg": _jpeg, "webp": _webp}
