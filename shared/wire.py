"""Messages and their attachments to frames and back. The only file that imports msgpack.

Frames: `[header][attachment part]*`. The header is a msgpack map with the message's fields, its `type`, the stamp of
its sender, and `parts`: how many frames each attachment takes, since none may pass MAX_FRAME_BYTES. An attachment is an
encoded image, byte for byte. Whatever arrives is hostile until it has passed `unpack`, which raises WireError only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgpack
from pydantic import ValidationError

from shared.errors import WireError
from shared.messages import Message

MAX_FRAME_BYTES = 8 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_ATTACHMENTS = 64
_PART_BYTES = 4 << 20

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who says it and when: the gateway's term, the worker's incarnation, the session, and the place in it."""

    term: int = 0
    incarnation: str = ""
    session: str = ""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """A message as it arrived."""

    message: Message
    stamp: Stamp
    attachments: tuple[Buffer, ...] = ()


def pack(message: Message, stamp: Stamp, attachments: Sequence[Buffer] = ()) -> list[Buffer]:
    """The frames of a message; attachments are sliced, never copied."""
    frames: list[Buffer] = [b""]
    parts = []
    for attachment in attachments:
        view = memoryview(attachment)
        pieces = [view[at : at + _PART_BYTES] for at in range(0, len(view), _PART_BYTES)] or [view]
        parts.append(len(pieces))
        frames.extend(pieces)
    header = message.model_dump(mode="python")
    header["type"] = type(message).__name__
    header["stamp"] = [stamp.term, stamp.incarnation, stamp.session, stamp.seq]
    header["parts"] = parts
    try:
        frames[0] = msgpack.packb(header)
    except (ValueError, OverflowError, TypeError) as error:
        raise WireError(f"{type(message).__name__} cannot be packed: {error}") from error
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise WireError(f"{type(message).__name__} is {len(frames[0])} bytes, the limit is {MAX_HEADER_BYTES}")
    return frames


def unpack(frames: Sequence[Buffer]) -> Packet:
    """The message in these frames. Raises WireError for anything that is not one, whatever it is."""
    if not frames or len(frames[0]) > MAX_HEADER_BYTES:
        raise WireError("the header is missing or too long")
    try:
        header = msgpack.unpackb(frames[0], strict_map_key=True, ext_hook=_no_extension, max_ext_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"the header is not msgpack: {error}") from error
    if not isinstance(header, dict):
        raise WireError("the header is not a map")
    cls = Message.registry.get(str(header.pop("type", "")))
    if cls is None:
        raise WireError("the header names no known message")
    stamp, parts = _stamp(header.pop("stamp", None)), _parts(header.pop("parts", None), len(frames) - 1)
    try:
        message = cls.model_validate(header)
    except ValidationError as error:
        raise WireError(f"{cls.__name__} is wrong in {', '.join(_places(error))}") from error
    return Packet(message, stamp, _join(frames, parts))


def _no_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code} is not spoken here")


def _stamp(value: object) -> Stamp:
    match value:
        case [int(term), str(incarnation), str(session), int(seq)]:
            return Stamp(term, incarnation, session, seq)
        case _:
            raise WireError("the stamp is wrong")


def _parts(value: object, frames: int) -> list[int]:
    if not isinstance(value, list) or len(value) > MAX_ATTACHMENTS:
        raise WireError("the parts are wrong")
    if not all(type(count) is int and count > 0 for count in value) or sum(value) != frames:
        raise WireError("the parts do not match the frames")
    return value


def _join(frames: Sequence[Buffer], parts: list[int]) -> tuple[Buffer, ...]:
    attachments: list[Buffer] = []
    at = 1
    for count in parts:
        attachments.append(frames[at] if count == 1 else b"".join(frames[at : at + count]))
        at += count
    return tuple(attachments)


def _places(error: ValidationError) -> list[str]:
    return [".".join(str(step) for step in problem["loc"]) for problem in error.errors(include_input=False)]
