"""The bodies of image answers, assembled once, as bytes around the encoded pictures.

A picture goes from its frame to base64 to its place in the body or the event: no JSON serializer ever sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pybase64

from gateway.jobs.job import Result
from shared.wire import Buffer


def images_body(results: Sequence[Result], *, created: int, echo: dict[str, Any]) -> bytes:
    """OpenAI's ImagesResponse with `b64_json`; the `seed` beside a picture makes it again. `echo`: as resolved."""
    rows = [
        b'{"b64_json":"%b","seed":%d}' % (pybase64.b64encode(image), facts.seed)
        for result in results
        for image, facts in zip(result.images, result.facts, strict=True)
    ]
    return _around(rows, created, echo)


def links_body(results: Sequence[Result], urls: Sequence[str], *, created: int, echo: dict[str, Any]) -> bytes:
    """The same with the `url` of each picture instead of the picture."""
    seeds = [facts.seed for result in results for facts in result.facts]
    rows = [orjson.dumps({"url": url, "seed": seed}) for url, seed in zip(urls, seeds, strict=True)]
    return _around(rows, created, echo)


def webui_body(images: Sequence[Buffer], parameters: dict[str, Any], info: str) -> bytes:
    """What AUTOMATIC1111 answers: bare base64, the parameters, and a text that is JSON itself."""
    encoded = b",".join(b'"%b"' % pybase64.b64encode(image) for image in images)
    return b'{"images":[%b],"parameters":%b,"info":%b}' % (encoded, orjson.dumps(parameters), orjson.dumps(info))


def progress_body(said: dict[str, Any], preview: Buffer | None = None) -> bytes:
    """The same server's word on what it is doing, with a picture of it where there is one."""
    image = b"null" if preview is None else b'"%b"' % pybase64.b64encode(preview)
    return b'{"current_image":%b,%b' % (image, orjson.dumps(said)[1:])


def _around(rows: Sequence[bytes], created: int, echo: dict[str, Any]) -> bytes:
    return b'{"created":%d,"data":[%b],%b' % (created, b",".join(rows), orjson.dumps(echo)[1:])


def usage(results: Sequence[Result]) -> dict[str, Any]:
    """OpenAI's usage in tokens of the model: what was read, once for all pictures, and what was written for each."""
    text = max(result.tokens.text for result in results)
    images = max(result.tokens.image_in for result in results)
    made = sum(result.tokens.image_out for result in results)
    return {
        "input_tokens": text + images,
        "input_tokens_details": {"text_tokens": text, "image_tokens": images},
        "output_tokens": made,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
        "total_tokens": text + images + made,
    }


def timings_ms(results: Sequence[Result], total_ms: float) -> dict[str, float]:
    """Where the time went on the slowest picture's way, in milliseconds."""
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
    return {name: round(ms, 1) for name, ms in phases.items()}


def server_timing(phases: dict[str, float]) -> str:
    """The Server-Timing header (https://www.w3.org/TR/server-timing/)."""
    return ", ".join(f"{name};dur={ms:.1f}" for name, ms in phases.items())


def image_event(kind: str, image: Buffer, facts: dict[str, Any]) -> bytes:
    """A server-sent event with a picture in it, as OpenAI's clients read it."""
    head = b'event: %b\ndata: {"type":"%b","b64_json":"' % (kind.encode(), kind.encode())
    return b"".join((head, pybase64.b64encode(image), b'",', orjson.dumps(facts)[1:], b"\n\n"))


def error_event(body: bytes) -> bytes:
    """The news that what has begun cannot be finished: clients raise only for an error that is nested in its object."""
    return b"event: error\ndata: %b\n\n" % body


# A comment, which every client skips: an event without data ends some of them.
HEARTBEAT = b": still at work\n\n"
