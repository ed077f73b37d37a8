"""Files that say they are pictures and hold nothing else: for whoever looks at headers alone."""

from __future__ import annotations

import struct
import zlib

from shared.cards import ImageFormat


def hollow(form: ImageFormat, width: int, height: int, more: bytes = b"") -> bytes:
    """The head of a picture of this size, with `more` behind it."""
    match form:
        case "png":
            chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
            return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + more
        case "jpeg":
            return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\0" * 9 + more
        case "webp":
            sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
            body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + sides + more
            return b"RIFF" + struct.pack("<I", len(body)) + body
