"""LoRA files for tests: small, well-formed, each with the content that a word says."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

KEYS = ("unet.down.0.attn.to_q.lora_A.weight", "unet.down.0.attn.to_q.lora_B.weight")


def lora(
    word: str = "ink",
    *,
    keys: Sequence[str] = KEYS,
    rank: int = 4,
    metadata: Mapping[str, str] | None = None,
    filler: int = 0,
) -> bytes:
    """The bytes of a safetensors file; `filler` are further bytes, in a tensor of their own."""
    shapes = [[rank, 8] if "lora_A" in key or "lora_down" in key else [8, rank] for key in keys]
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place, data = 0, b""
    seed = hashlib.sha256(word.encode()).digest()
    for key, shape in zip(keys, shapes, strict=True):
        size = shape[0] * shape[1] * 4
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
        # Finite numbers: the two high bytes of each are those of one near 1.
        data += b"".join(seed[index % 31 : index % 31 + 2] + b"\x80\x3f" for index in range(size // 4))
        place += size
    if filler:
        header["filler"] = {"dtype": "U8", "shape": [filler], "data_offsets": [place, place + filler]}
        data += bytes(filler)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def write(path: Path, content: bytes, *, age_seconds: float = 0.0) -> Path:
    """Write a file, which says that it is so old; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    then = path.stat().st_mtime - age_seconds
    os.utime(path, (then, then))
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
