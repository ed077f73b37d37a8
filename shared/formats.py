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
_SHORT = 3
_EXIF_PREFIX = b"Exif\0\0"
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Every loop below is bounded, since a file can be made of nothing but headers of chunks. A PNG of 50 MB in the small
# pieces that encoders write has 6000 of them, a JPEG some hundred segments and hardly a byte between two of them.
_MAX_CHUNKS = 10_000
_MAX_SEGMENTS = 1000
_MAX_SKIPPED = 1000
_MAX_ENTRIES = 1000


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

    Bounded work, whatever the file says of its lengths: one in more pieces than any program writes has no header. So
    whoever decodes a file with a header has no more pieces to go through either.
    """
    form = image_type(data)
    if form is None:
        return None
    try:
        return _READERS[form](memoryview(data))
    except (struct.error, IndexError):
        return None


def _png(data: memoryview) -> ImageHeader | None:
    if bytes(data[12:16]) != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    exif: memoryview | None = None
    frames, pixels, at = 1, False, 8
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL" and not pixels:
            (frames,) = struct.unpack_from(">I", data, at + 8)
        elif kind == b"eXIf" and exif is None:
            # It may stand behind the pixels too.
            exif = data[at + 8 : at + 8 + length]
        elif kind == b"IEND":
            break
        pixels = pixels or kind == b"IDAT"
        at += 12 + length
    else:
        return None
    return ImageHeader("png", width, height, _orientation(exif), frames > 1)


def _jpeg(data: memoryview) -> ImageHeader | None:
    """Up to the first scan: no program that decodes it goes through more by itself."""
    exif: memoryview | None = None
    width = height = skipped = 0
    at = 2
    for _ in range(_MAX_SEGMENTS):
        # Fill bytes, and what should not be there and everybody passes over.
        while at + 4 <= len(data) and (data[at] != 0xFF or data[at + 1] in (0x00, 0xFF)):
            at += 1
            skipped += 1
            if skipped > _MAX_SKIPPED:
                return None
        if at + 4 > len(data) or data[at + 1] in (0xD9, 0xDA):
            break
        kind = data[at + 1]
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers that stand alone
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if kind in _FRAME_HEADERS and not width:
            height, width = struct.unpack_from(">HH", data, at + 5)
        elif kind == 0xE1 and exif is None and bytes(data[at + 4 : at + 10]) == _EXIF_PREFIX:
            exif = data[at + 4 : at + 2 + length]
        at += 2 + max(2, length)
    else:
        return None
    return ImageHeader("jpeg", width, height, _orientation(exif)) if width else None


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
    if len(data) < 30:
        return None
    width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    flags = data[20]
    return ImageHeader("webp", width, height, _webp_orientation(data) if flags & 0x08 else 1, bool(flags & 0x02))


def _webp_orientation(data: memoryview) -> int:
    at = 12
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return _orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + (length & 1)
    return 1


def _orientation(exif: memoryview | None) -> int:
    """What the first directory of this TIFF structure says, with JPEG's prefix or without; 1 where it says nothing."""
    if exif is None:
        return 1
    tiff = exif[len(_EXIF_PREFIX) :] if bytes(exif[: len(_EXIF_PREFIX)]) == _EXIF_PREFIX else exif
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * min(entries, _MAX_ENTRIES), 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, at)
            if tag == _ORIENTATION_TAG:
                return value if (kind, count) == (_SHORT, 1) and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


_READERS = {"png": _png, "jpeg": _jpeg, "webp": _webp}
