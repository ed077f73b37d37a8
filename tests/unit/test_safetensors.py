"""A safetensors header: what is taken, and that nothing else is, whatever it claims."""

from __future__ import annotations

import io
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidAdapter
from shared.safetensors import MAX_HEADER_BYTES, read_header

GOOD: dict[str, Any] = {
    "__metadata__": {"ss_tag": "x"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
}


def packed(header: object, data: bytes = bytes(22)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def read(content: bytes, folder: Path) -> Any:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    with path.open("rb") as file:
        return read_header(file)


def with_a(**changes: object) -> dict[str, Any]:
    return {**GOOD, "a": {**GOOD["a"], **changes}}


def test_a_good_header_is_read(tmp_path: Path) -> None:
    header = read(packed(GOOD), tmp_path)
    assert header.metadata == {"ss_tag": "x"}
    assert {name: (t.dtype, t.shape) for name, t in header.tensors.items()} == {
        "a": ("F32", (2, 2)),
        "b": ("BF16", (3,)),
    }
    assert header.data_offset + 22 == header.size


def test_padding_behind_the_header_is_as_libraries_write_it(tmp_path: Path) -> None:
    assert read(packed(json.dumps(GOOD).encode() + b"   "), tmp_path).tensors


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (b"PK\x03\x04" + bytes(100), "header"),
        (struct.pack("<Q", 2**63) + b"{}", "claims"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), "claims"),
        (struct.pack("<Q", 400) + b"{}", "cut off within its header"),
        (packed(b"[]"), "no JSON object"),
        (packed(b"{"), "no JSON object"),
        (packed(b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"), "nested"),
        (packed(b'{"\xff": 1}'), "no JSON object"),
        (packed({}), "no tensors"),
        (packed(b'{"a": NaN}'), "NaN"),
        (packed(json.dumps(GOOD)[:-1].encode() + b', "a": {}}'), "twice"),
        (packed({**GOOD, "__metadata__": {"a": 1}}), "metadata"),
        (packed({**GOOD, "__metadata__": []}), "metadata"),
        (packed({**GOOD, "a": 3}), "not described"),
        (packed(with_a(dtype="F8_E4M3")), "type"),
        (packed(with_a(dtype=["F32"])), "type"),
        (packed(with_a(shape=[-2, -2])), "no shape"),
        (packed(with_a(shape=[2.0, 2])), "no shape"),
        (packed(with_a(shape=[True, 4])), "no shape"),
        (packed(with_a(shape=[0, 2**60])), "no shape"),
        (packed(with_a(shape=[2**30, 2**30])), "another size"),
        (packed(with_a(shape=[1] * 9)), "no shape"),
        (packed(with_a(data_offsets=[0, 15])), "another size"),
        (packed(with_a(data_offsets=[-16, 0])), "lies nowhere"),
        (packed(with_a(data_offsets=[4, 20])), "overlaps"),
        (packed({**GOOD, "b": {"dtype": "BF16", "shape": [2], "data_offsets": [18, 22]}}), "belong to none"),
        (packed(GOOD, bytes(21)), "cut off"),
        (packed(GOOD, bytes(23)), "belong to no tensor"),
        (packed({"n" * 600: GOOD["a"]}, bytes(16)), "characters"),
        (
            packed({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}, b""),
            "tensors",
        ),
    ],
)
def test_everything_else_is_refused_with_its_reason(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match=said):
        read(content, tmp_path)


def test_a_fifo_is_no_file_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        os.fdopen(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb") as file,
        pytest.raises(InvalidAdapter),
    ):
        read_header(file)


def test_no_change_of_bytes_raises_anything_else(tmp_path: Path) -> None:
    rng, good = random.Random(7), packed(GOOD)
    told = []
    for _ in range(3000):
        content = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.choice([0, 34, 44, 91, 123, 255, rng.randrange(256)])
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        try:
            read(bytes(content), tmp_path)
        except InvalidAdapter as problem:
            told.append(problem.message)
    assert len(told) > 1000
    assert all(message.isascii() and len(message) < 200 for message in told)


def test_a_stream_that_is_no_file_is_a_bug_of_ours() -> None:
    with pytest.raises(io.UnsupportedOperation):
        read_header(io.BytesIO(packed(GOOD)))
