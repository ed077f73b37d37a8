"""A picture's file without all that makes no pixels: what a decoder might be busy with for long is not handed to it.

Profiles, texts, thumbnails, comments and Exif are what most attacks on decoders are made of, and none of it is wanted.
What is left is as it came: it may be damaged, and a decoder is still to say so.
"""

from __future__ import annotations

import re

from shared.cards import ImageFormat
from shared.formats import START_OF_SCAN, jpeg_segments, png_chunks

_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
# APP0 and APP14 say in which colours the pixels are; APP1 to APP13, APP15 and comments say nothing of them.
_JPEG_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
# A marker among the pixels: there a 0xFF is followed by 0, or by one of the eight that let a decoder find its way back.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END = 0xD9
# Each scan of a progressive JPEG goes over every pixel again; encoders make about ten, with tables between them.
_MAX_SCANS = 50
_MAX_SEGMENTS = 1000


def bare(data: memoryview, form: ImageFormat) -> bytes:
    """The file with nothing in it but its pixels and what they need. Raises ValueError, in words for whoever sent it.

    `data` has a header that `shared.formats.image_header` can read.
    """
    match form:
        case "png":
            kept = [data[at:end] for kind, at, end in png_chunks(data) if kind in _PNG_KEPT]
            return b"".join((data[:8], *kept))
        case "jpeg":
            return _jpeg(data)
        case "webp":
            return bytes(data)


def _jpeg(data: memoryview) -> bytes:
    """Of a file that holds several, as some phones write it, or that has a film behind it: the first picture."""
    kept, kind, end = [data[:2]], 0, len(data)
    for kind, at, end in jpeg_segments(data):
        if kind not in _JPEG_DROPPED:
            kept.append(data[at:end])
    scans = int(kind == START_OF_SCAN)
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, end)
        if not scans or found is None:
            return b"".join((*kept, data[end:]))
        at, kind = found.start(), data[found.start() + 1]
        kept.append(data[end:at])
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == _END:
            return b"".join((*kept, data[at : at + 2]))
        if kind not in _JPEG_DROPPED:
            kept.append(data[at:end])
        scans += kind == START_OF_SCAN
        if scans > _MAX_SCANS:
            break
    raise ValueError("it has too many scans")
