"""A LoRA file from the shelf, proven to be the one that is meant before any library sees it. Needs no torch."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import InvalidAdapter, UnknownAdapter
from shared.safetensors import Header, Tensor, read_header, said

# A LoRA of rank 256 over every layer of the largest models that are public takes less.
MAX_FILE_BYTES = 8 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 24
# In which unsigned type each floating one is looked at, and its exponent: all ones there is an infinity or a NaN.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


@dataclass(frozen=True, slots=True)
class Content:
    """A whole file, in memory, with its header; its tensors are finite."""

    data: bytes
    header: Header


def read(shelf: str, sha256: str) -> Content:
    """The LoRA of this hash. Raises UnknownAdapter if it is not there, InvalidAdapter if it is not what it should be.

    The bytes that are hashed are those that are given back: nothing is opened twice.
    """
    if not _SHA256.fullmatch(sha256):
        raise InvalidAdapter("a LoRA is named by the sha256 of its file")
    try:
        # A pipe put in its place must not hold up whoever opens it.
        descriptor = os.open(Path(shelf) / f"{sha256}.safetensors", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnknownAdapter(f"LoRA {sha256[:12]} is not on the shelf: {type(error).__name__}") from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            header = read_header(file)
            if header.size > MAX_FILE_BYTES:
                raise InvalidAdapter(f"it has {header.size} bytes; at most {MAX_FILE_BYTES} are read")
            file.seek(0)
            data = file.read(header.size + 1)
        except OSError as error:
            raise InvalidAdapter(f"LoRA {sha256[:12]} cannot be read: {type(error).__name__}") from error
        except InvalidAdapter as error:
            raise InvalidAdapter(f"LoRA {sha256[:12]}: {error.message}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InvalidAdapter(f"LoRA {sha256[:12]}: its content is not that of its hash")
    for name, tensor in header.tensors.items():
        if not _finite(data, header.data_offset, tensor):
            raise InvalidAdapter(f"LoRA {sha256[:12]}: {said(name)} has NaN or infinity in it")
    return Content(data, header)


def _finite(data: bytes, offset: int, tensor: Tensor) -> bool:
    if tensor.dtype not in _EXPONENTS:
        return True
    unsigned, exponent = _EXPONENTS[tensor.dtype]
    size = np.dtype(unsigned).itemsize
    for begin in range(offset + tensor.begin, offset + tensor.end, _BLOCK):
        count = min(_BLOCK, offset + tensor.end - begin) // size
        values = np.frombuffer(data, unsigned, count, begin)
        if ((values & exponent) == exponent).any():
            return False
    return True
