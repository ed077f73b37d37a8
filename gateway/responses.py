"""The bodies of image answers, assembled once, as bytes around the encoded pictures."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pybase64

from gateway.jobs.job import Result
from shared.messages import ImageFormat, Size


def images_body(results: Sequence[Result], *, created: int, output_format: ImageFormat, size: Size) -> bytes:
    """OpenAI's ImagesResponse with `b64_json`; `seed` beside each picture makes it again.

    A picture goes from its frame to base64 to its place in the body: no JSON serializer ever sees it.
    """
    pieces: list[bytes] = [b'{"created":%d,"background":"opaque","data":[' % created]
    comma = b""
    for result in results:
        for image, facts in zip(result.images, result.facts, strict=True):
            pieces += (comma, b'{"b64_json":"', pybase64.b64encode(image), b'","seed":%d}' % facts.seed)
            comma = b","
    tail = orjson.dumps({"output_format": output_format, "size": str(size)})
    pieces += (b"],", tail[1:])
    return b"".join(pieces)


def server_timing(results: Sequence[Result], total_ms: float) -> str:
    """The Server-Timing header: the slowest picture's way, in milliseconds."""
    slowest = max(results, key=lambda result: result.queue_ms + result.timings.inference_ms)
    timings = slowest.timings
    known = slowest.queue_ms + timings.wait_ms + timings.inference_ms + timings.encode_ms
    phases = {
        "queue": slowest.queue_ms + timings.wait_ms,
        "dispatch": max(0.0, total_ms - known),
        "inference": timings.inference_ms,
        "encode": timings.encode_ms,
        "total": total_ms,
    }
    return ", ".join(f"{name};dur={ms:.1f}" for name, ms in phases.items())
