"""What an image says of itself in its first bytes: format, size, orientation. Labels and names are never believed.

Nothing is decoded, so a picture that would not fit into memory is known before any of it is there. The layouts are
those of the PNG specification (third edition), ITU-T T.81 with Exif 2.32, and the WebP container specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from shared.cards import ImageFormat, Size

Bytes = bytes | memoryview

# An orientation of 5 to 8 lies on its side: the picture that people see has width and height exchanged.
_LYING = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_EXIF_PREFIX = b"Exif\0\0"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN = 0xDA
_END = 0xD9
# Markers without a length behind them.
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
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
    if head.startswith(_SIGNATURE):
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
    except (struct.error, IndexError, ValueError):
        return None


def png_chunks(data: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's type and where it begins and ends, which may be behind the end of the file.

    Raises ValueError for a file in too many pieces.
    """
    at = len(_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at, at + 12 + length
        if kind == b"IEND":
            return
        at += 12 + length
    raise ValueError("the file is in too many pieces")


def jpeg_segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker and where it begins and ends, to the first scan: it is the last, and only its header.

    Raises ValueError for a file in too many pieces.
    """
    at, skipped = 2, 0
    for _ in range(_MAX_SEGMENTS):
        # Fill bytes, and what should not be there and everybody passes over.
        while at + 4 <= len(data) and (data[at] != 0xFF or data[at + 1] in (0x00, 0xFF)):
            at += 1
            skipped += 1
            if skipped > _MAX_SKIPPED:
                raise ValueError("there is too much between the segments")
        if at + 4 > len(data) or data[at + 1] == _END:
            return
        kind = data[at + 1]
        length = 0 if kind in _ALONE else max(2, *struct.unpack_from(">H", data, at + 2))
        yield kind, at, at + 2 + length
        if kind == START_OF_SCAN:
            return
        at += 2 + length
    raise ValueError("the file is in too many pieces")


def _png(data: memoryview) -> ImageHeader | None:
    if bytes(data[12:16]) != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    exif: memoryview | None = None
    frames, pixels = 1, False
    for kind, at, end in png_chunks(data):
        if kind == b"acTL" and not pixels:
            (frames,) = struct.unpack_from(">I", data, at + 8)
        elif kind == b"eXIf" and exif is None:
            # It may stand behind the pixels too.
            exif = data[at + 8 : end - 4]
        pixels = pixels or kind == b"IDAT"
    return ImageHeader("png", width, height, _orientation(exif), frames > 1)


def _jpeg(data: memoryview) -> ImageHeader | None:
    """Up to the first scan: no program that decodes it goes through more by itself."""
    width = height = 0
    exif: memoryview | None = None
    for kind, at, end in jpeg_segments(data):
        if kind in _FRAME_HEADERS and not width:
            height, width = struct.unpack_from(">HH", data, at + 5)
        elif kind == 0xE1 and exif is None and bytes(data[at + 4 : at + 10]) == _EXIF_PREFIX:
            exif = data[at + 4 : end]
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
