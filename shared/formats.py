"""What an image is, by its first bytes; labels and names are never believed."""

from __future__ import annotations

from shared.messages import ImageFormat


def image_type(data: bytes | memoryview) -> ImageFormat | None:
    """PNG, JPEG or WebP by the magic bytes; None for anything else."""
    head = bytes(data[:12])
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return None
