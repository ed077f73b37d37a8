"""What a file says of its size and orientation is what Pillow says; no file at all makes us raise, or work for long."""

from __future__ import annotations

import io
import random
import struct
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from shared.cards import ImageFormat, Size
from shared.formats import ImageHeader, image_header, image_type
from tests.flavours import FLAVOURS, HEIGHT, PNG, WIDTH, chunk, exif, picture, saved, with_chunk


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_header_says_what_pillow_says(name: str) -> None:
    data = FLAVOURS[name]
    header = image_header(data)
    assert header is not None
    with Image.open(io.BytesIO(data)) as image:
        assert (header.format.upper(), header.width, header.height) == (
            "JPEG" if image.format == "MPO" else image.format,
            *image.size,
        )
        assert header.orientation == image.getexif().get(0x0112, 1)
        assert header.animated == (image.format != "MPO" and getattr(image, "is_animated", False))
        assert (header.size.width, header.size.height) == ImageOps.exif_transpose(image).size
    assert image_header(memoryview(data)) == header


def test_the_flavours_hold_what_they_should() -> None:
    """Else the test above would say nothing."""
    headers = {name: image_header(data) for name, data in FLAVOURS.items()}
    assert {header.orientation for header in headers.values() if header} == set(range(1, 9))
    assert [name for name, header in headers.items() if header and header.animated] == ["apng", "webp animated"]
    lying = headers["jpeg 6 big"]
    assert lying == ImageHeader("jpeg", WIDTH, HEIGHT, 6)
    assert lying.size == Size(width=HEIGHT, height=WIDTH)


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_file_that_is_cut_off_says_the_same_or_nothing(name: str) -> None:
    data, whole = FLAVOURS[name], image_header(FLAVOURS[name])
    assert whole is not None
    told = 0
    for end in (*range(min(len(data), 700)), *range(700, len(data), 97)):
        header = image_header(data[:end])
        if header is not None:
            told += 1
            assert (header.width, header.height) == (whole.width, whole.height), end
    assert told


def test_no_mutation_of_a_file_makes_it_raise() -> None:
    """Bytes are changed, taken out, doubled; what comes out is a header of our format, or none."""
    drawn = random.Random(0)
    files = [data for data in FLAVOURS.values() if len(data) < 5000]
    headers = 0
    for _ in range(30_000):
        data = bytearray(drawn.choice(files))
        for _ in range(drawn.randint(1, 4)):
            # Near the beginning, where the headers are.
            at = min(int(drawn.expovariate(1 / 60)), len(data) - 1)
            match drawn.randrange(4):
                case 0:
                    data[at] = drawn.choice((0x00, 0x01, 0x7F, 0xFF, drawn.randrange(256)))
                case 1:
                    del data[at : at + drawn.randint(1, 9)]
                case 2:
                    data[at:at] = data[at : at + drawn.randint(1, 40)]
                case 3:
                    data[at : at + 4] = drawn.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
        header = image_header(bytes(data))
        if header is not None:
            headers += 1
            assert header.format == image_type(bytes(data))
            assert header.width >= 0
            assert header.height >= 0
            assert header.orientation in range(1, 9)
    assert 5_000 < headers < 29_000


MAGIC = st.sampled_from(
    [
        PNG + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", 64, 64) + b"\x08\x02\0\0\0" + b"....",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\0\x40Exif\0\0",
        b"\xff\xd8\xff\xe1\0\x40Exif\0\0II*\0\x08\0\0\0",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\x3f\0\0\x3f\0\0",
        b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f",
        b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a",
        b"",
    ]
)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(MAGIC, st.binary(max_size=200))
def test_nothing_behind_a_magic_makes_it_raise(magic: bytes, more: bytes) -> None:
    header = image_header(magic + more)
    assert header is None or header.format == image_type(magic + more)


def lines_run(act: Callable[[], object]) -> int:
    """How many lines of shared/formats.py it takes: a measure of its work that no busy machine disturbs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith("formats.py"):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


JPEG = saved(picture(), "JPEG")
HEAD = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
WEBP = b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\x08\0\0\0\x3f\0\0\x3f\0\0"
# A directory of a thousand entries that are no orientation.
DIRECTORY = b"II*\0\x08\0\0\0\xe8\x03" + b"\1\0\3\0\1\0\0\0\6\0\0\0" * 1000
APP1 = b"\xff\xe1" + struct.pack(">H", len(DIRECTORY) + 8) + b"Exif\0\0" + DIRECTORY
ENDLESS = {
    "jpeg of fill bytes": lambda size: b"\xff\xd8" + b"\xff" * size,
    "jpeg of zeros": lambda size: b"\xff\xd8\xff" + b"\0" * size,
    "jpeg of escaped bytes": lambda size: b"\xff\xd8" + b"\xff\0" * (size // 2),
    "jpeg of markers that stand alone": lambda size: b"\xff\xd8" + b"\xff\xd0" * (size // 2),
    "jpeg of empty segments": lambda size: b"\xff\xd8" + b"\xff\xfe\0\2" * (size // 4),
    "jpeg of segments shorter than nothing": lambda size: b"\xff\xd8" + b"\xff\xfe\0\0" * (size // 4),
    "jpeg of fill bytes behind its size": lambda size: JPEG[: JPEG.index(b"\xff\xda")] + b"\xff" * size,
    "jpeg of sizes": lambda size: b"\xff\xd8" + b"\xff\xc0\0\x08\x08\0\x40\0\x40\3" * (size // 10),
    "png of empty chunks": lambda size: HEAD + chunk(b"juNk", b"") * (size // 12),
    "png of empty pixels": lambda size: HEAD + chunk(b"IDAT", b"") * (size // 12),
    "png of orientations": lambda size: HEAD + chunk(b"eXIf", exif(9)) * (size // (12 + len(exif(9)))),
    "png of a chunk without end": lambda size: HEAD + chunk(b"juNk", b"x" * size, length=1 << 31),
    "png of zeros": lambda size: HEAD + b"\0" * size,
    "webp of empty chunks": lambda size: WEBP + b"JUNK\0\0\0\0" * (size // 8),
    "webp of zeros": lambda size: WEBP + b"\0" * size,
    "png of directories": lambda size: HEAD + chunk(b"eXIf", DIRECTORY) * (size // len(DIRECTORY)),
    "jpeg of directories": lambda size: b"\xff\xd8" + APP1 * (size // len(APP1)),
    "directory of 65535 entries": lambda size: (
        HEAD + chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\1\0\3\0\1\0\0\0\6\0\0\0" * (size // 12))
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_the_work_is_bounded_whatever_the_file_is_made_of(what: str) -> None:
    data = ENDLESS[what](60_000_000)
    assert 0 < lines_run(lambda: image_header(data)) < 150_000


@pytest.mark.parametrize(
    "what",
    [
        "jpeg of fill bytes",
        "jpeg of zeros",
        "jpeg of markers that stand alone",
        "jpeg of fill bytes behind its size",
        "jpeg of empty segments",
        "png of empty chunks",
        "png of empty pixels",
    ],
)
def test_what_a_decoder_would_have_to_go_through_for_long_has_no_header(what: str) -> None:
    assert image_header(ENDLESS[what](1_000_000)) is None


def test_a_large_png_in_small_pieces_has_a_header() -> None:
    """As libpng writes it, 8 KiB a piece."""
    data = HEAD + chunk(b"IDAT", bytes(8192)) * 6000 + chunk(b"eXIf", exif(8)) + chunk(b"IEND", b"")
    assert image_header(data) == ImageHeader("png", 64, 64, 8)


def test_a_png_of_one_frame_does_not_move() -> None:
    one = with_chunk(saved(picture(), "PNG"), b"acTL", struct.pack(">II", 1, 0))
    two = with_chunk(saved(picture(), "PNG"), b"acTL", struct.pack(">II", 2, 0))
    assert [header.animated for data in (one, two) if (header := image_header(data))] == [False, True]


@pytest.mark.parametrize(
    ("said", "orientation"),
    [
        (exif(6), 6),
        (exif(0), 1),
        (exif(9), 1),
        (exif(6, kind=4), 1),
        (exif(6, count=2), 1),
        (b"", 1),
        (b"II", 1),
        (b"XX*\0\x08\0\0\0", 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"II*\0\x08\0\0\0\xff\xff", 1),
    ],
)
def test_an_orientation_that_is_none_turns_nothing(said: bytes, orientation: int) -> None:
    header = image_header(with_chunk(saved(picture(), "PNG"), b"eXIf", said))
    assert header == ImageHeader("png", WIDTH, HEIGHT, orientation)


def test_the_first_of_two_orientations_counts() -> None:
    first, second = (b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in (exif(6, prefix=True), exif(3, ">")))
    assert image_header(b"\xff\xd8" + first + second + JPEG[2:]) == ImageHeader("jpeg", WIDTH, HEIGHT, 6)


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (b"", None),
        (b"\x89PNG", None),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff", "jpeg"),
        (b"\xff\xd8", None),
        (b"RIFF....WEBP", "webp"),
        (b"RIFF....WAVE", None),
        (b"GIF89a", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"%!PS-Adobe", None),
        (b"%PDF-1.7", None),
        (b"8BPS", None),
        (b"II*\0", None),
        (b"BM", None),
        (b"PK\3\4", None),
        (b"<html>", None),
        (b"\0\0\0\x1cftypavif", None),
    ],
)
def test_only_three_formats_are_known(data: bytes, form: ImageFormat | None) -> None:
    assert image_type(data) == form
    assert image_header(data) is None
    # A magic alone says no size, with a name or a label behind it neither.
    assert image_header(data + b"photo.png image/png" * 9) is None
