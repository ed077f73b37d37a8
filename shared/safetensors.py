"""The header of a safetensors file, held to limits before any library sees the file.

The format forbids overlaps and holes; libraries take a header of 100 MB, NaN, duplicate keys and absurd shapes all the
same. See https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from shared.errors import InvalidAdapter

MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
MAX_NAME = 512
_MAX_METADATA = 4 * 1024 * 1024
_MAX_SIDE = 2**31
# Those that weights of a LoRA come in. Quantized ones are no deltas.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLAT = re.compile(r"[^\x20-\x7e]")
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: its type, its shape, and where its bytes lie behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says that it holds. `data_offset` is where its bytes begin, `size` those of the whole file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    data_offset: int
    size: int


def read_header(file: BinaryIO) -> Header:
    """The header of an opened file, which has to be a regular one. Raises InvalidAdapter saying what is wrong."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise InvalidAdapter("it is no regular file")
    file.seek(0)
    start = file.read(8)
    if len(start) < 8:
        raise InvalidAdapter("it is too short to be a safetensors file")
    [length] = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES:
        raise InvalidAdapter(f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    if length > status.st_size - 8:
        raise InvalidAdapter("it is cut off within its header")
    raw = file.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise InvalidAdapter("its header is no JSON object")
    entries = _parsed(raw)
    metadata = entries.pop("__metadata__", {})
    if len(entries) > MAX_TENSORS:
        raise InvalidAdapter(f"it has {len(entries)} tensors; at most {MAX_TENSORS} are read")
    if not entries:
        raise InvalidAdapter("it has no tensors")
    tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    _cover(tensors, status.st_size - 8 - length)
    return Header(tensors, _metadata(metadata), 8 + length, status.st_size)


def _parsed(raw: bytes) -> dict[str, Any]:
    if _depth(raw) > _DEEPEST:
        raise InvalidAdapter("its header is nested too deeply")
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except InvalidAdapter:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter("its header is no JSON object") from error
    if not isinstance(entries, dict):
        raise InvalidAdapter("its header is no JSON object")
    return entries


def _depth(raw: bytes) -> int:
    """How deeply brackets may be nested at the most; those within strings count too, which only errs to be strict."""
    deepest = depth = 0
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', raw):
        sign = match.group()
        if sign in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif sign in (b"]", b"}"):
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidAdapter("its header names something twice")
    return found


def _no_constant(name: str) -> Any:
    raise InvalidAdapter(f"its header has {name} in it")


def _tensor(name: str, entry: Any) -> Tensor:
    shown = said(name)
    if not name or len(name) > MAX_NAME:
        raise InvalidAdapter(f"a tensor's name has {len(name)} characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(f"{shown} is not described as a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise InvalidAdapter(f"{shown} has the type {said(str(dtype))}, which is not read here")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_count(side) for side in shape):
        raise InvalidAdapter(f"{shown} has no shape that could be")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(each, 2**62) for each in offsets):
        raise InvalidAdapter(f"{shown} lies nowhere")
    begin, end = offsets
    if end - begin != math.prod(shape) * SIZES[dtype]:
        raise InvalidAdapter(f"{shown} has another size than its shape says")
    return Tensor(dtype, tuple(shape), begin, end)


def _is_count(value: Any, most: int = _MAX_SIDE) -> bool:
    return type(value) is int and 0 <= value < most


def _cover(tensors: dict[str, Tensor], size: int) -> None:
    """Every byte belongs to one tensor."""
    place = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != place:
            raise InvalidAdapter(f"{said(name)} overlaps another tensor, or bytes before it belong to none")
        place = tensor.end
    if place > size:
        raise InvalidAdapter("it is cut off")
    if place < size:
        raise InvalidAdapter("bytes at its end belong to no tensor")


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidAdapter("its metadata is not text by text")
    if sum(len(key) + len(value) for key, value in found.items()) > _MAX_METADATA:
        raise InvalidAdapter("its metadata is too long")
    return found


def said(name: str) -> str:
    """A name from a file as it may stand in a message: short, and in plain letters."""
    return _FLAT.sub("?", name[:80])
