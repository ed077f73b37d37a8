"""What makes no pixels is taken out of a file before a decoder sees it; what makes them, and says how, is not."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from tests.flavours import FLAVOURS, chunk, data_of, picture, png, saved, scans, segment
from worker import images
from worker.bare import bare

BOMB = zlib.compress(bytes(50_000_000), 9)
BOMBS = {
    "zTXt": [chunk(b"zTXt", b"a\0\0" + BOMB)],
    "iTXt": [chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)],
    "iCCP": [chunk(b"iCCP", b"a\0\0" + BOMB)],
    "eXIf": [chunk(b"eXIf", bytes(1_000_000))],
    "thousands of small profiles": [chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))] * 5000,
    "texts behind the pixels": [],
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_beside_the_pixels_is_never_opened(what: str) -> None:
    pixels = data_of(64, 64)
    behind = [chunk(b"zTXt", b"a\0\0" + BOMB)] * 3 if what == "texts behind the pixels" else []
    data = png(64, 64, *BOMBS[what], pixels, *behind)
    assert bare(memoryview(data), "png") == png(64, 64, pixels)
    assert images.decode_strange(data).shape == (64, 64, 3)


def test_what_a_jpeg_says_beside_its_pixels_is_not_read() -> None:
    """Pillow joins all Exif segments one by one, reads every entry of them, and warns of each that is wrong."""
    jpeg = FLAVOURS["jpeg RGB"]
    entries = b"".join(struct.pack("<HHII", 1000 + tag, 7, 190_000, 8) for tag in range(5000))
    directory = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries
    junk = [
        segment(0xE1, directory),
        *[segment(0xE1, b"Exif\0\0" + bytes(60_000))] * 50,
        segment(0xE2, b"MPF\0" + directory[6:]),
        *[segment(0xE2, b"ICC_PROFILE\0" + bytes([part, 200]) + bytes(60_000)) for part in range(1, 200)],
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 15_000),
        segment(0xFE, bytes(60_000)),
    ]
    data = jpeg[:2] + b"".join(junk) + jpeg[2:]
    assert bare(memoryview(data), "jpeg") == jpeg
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(images.decode_strange(data), images.decode_strange(jpeg))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_what_says_how_the_colours_are_meant_is_kept(mode: str) -> None:
    """Without its APP14 a CMYK picture would be its own negative."""
    for progressive in (False, True):
        jpeg = saved(picture(mode), "JPEG", progressive=progressive)
        assert bare(memoryview(jpeg), "jpeg") == jpeg


def test_as_many_scans_as_encoders_make_are_taken() -> None:
    assert images.decode_strange(scans(30)).shape == (23, 37, 3)
    with pytest.raises(ValueError, match="too many scans"):
        images.decode_strange(scans(60))


def endless() -> Iterator[tuple[str, bytes]]:
    """Behind the first scan of a JPEG, where a header says nothing."""
    jpeg = FLAVOURS["jpeg RGB"]
    at = jpeg.index(b"\xff\xda") + 14
    yield "comments", jpeg[:at] + b"\xff\xfe\0\2" * 250_000
    yield "comments shorter than nothing", jpeg[:at] + b"\xff\xfe\0\0" * 250_000
    yield "scans", jpeg[:at] + b"\xff\xda\0\2" * 250_000
    yield "fill bytes", jpeg[:at] + b"\xff" * 1_000_000


@pytest.mark.parametrize(("what", "data"), list(endless()))
def test_a_jpeg_without_end_is_refused(what: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it (has too many scans|is damaged or cut short)$"):
        images.decode_strange(data)
