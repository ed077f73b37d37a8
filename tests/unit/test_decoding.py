"""Pictures from anywhere: each flavour is what Pillow makes of it, and what is hostile is refused in plain words."""

from __future__ import annotations

import io
import random
import re
import zlib
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from shared.formats import image_header
from tests.flavours import FLAVOURS, PNG, chunk, data_of, exif, header, of_size, picture, png, saved, scans, with_chunk
from worker import images

STILL = {name: data for name, data in FLAVOURS.items() if "apng" not in name and "animated" not in name}


def as_pillow_sees(data: bytes) -> images.Pixels:
    with Image.open(io.BytesIO(data)) as image:
        # Of a file with several pictures the first; Pillow turns whatever is at hand.
        image.seek(0)
        turned = ImageOps.exif_transpose(image)
        if turned.mode == "I;16":
            return np.repeat((np.asarray(turned) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        clear = turned.mode in ("LA", "RGBA") or "transparency" in image.info
        return np.asarray(turned.convert("RGBA" if clear else "RGB"))


@pytest.mark.parametrize("name", STILL)
def test_every_flavour_is_what_pillow_sees(name: str) -> None:
    pixels = images.decode_strange(STILL[name])
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, as_pillow_sees(STILL[name]))
    assert np.array_equal(images.decode_strange(memoryview(STILL[name])), pixels)


def test_what_is_transparent_stays_so() -> None:
    """In each of the ways in which a PNG can say it."""
    grey = Image.frombytes("L", (2, 1), bytes([7, 9]))
    colours = Image.frombytes("RGB", (2, 1), bytes([7, 7, 7, 9, 9, 9]))
    two = saved(Image.frombytes("L", (2, 1), bytes([0, 255])).convert("1"), "PNG")
    palette = saved(grey.convert("P"), "PNG")
    for data in (
        with_chunk(two, b"tRNS", b"\0\1"),
        with_chunk(saved(grey, "PNG"), b"tRNS", b"\0\x09"),
        with_chunk(saved(colours, "PNG"), b"tRNS", b"\0\x09" * 3),
        with_chunk(palette, b"tRNS", bytes([*[255] * 9, 0])),
    ):
        assert images.decode_strange(data)[0, :, 3].tolist() == [255, 0]


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
    data = saved(Image.fromarray(grey), "PNG")
    assert images.decode_strange(data)[0, :, 0].tolist() == [0, 0, 1, 0x7F, 255]


def test_a_tall_picture_is_whole_though_it_is_done_in_bands() -> None:
    tall = picture("P", (5, 4 * images._BAND + 3))
    assert np.array_equal(images.decode_strange(saved(tall, "PNG")), np.asarray(tall.convert("RGB")))


def test_the_photo_of_a_phone_is_its_first_picture() -> None:
    """With a second one behind it, a profile, a thumbnail, an orientation, and a film at the end."""
    photo = saved(
        picture(),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (200, 100))],
        exif=exif(6, ">", prefix=True),
    )
    # In noise there is something like a scan every 64 KiB.
    film = b"\xff\xda\0\2" * 100_000
    pixels = images.decode_strange(photo + film)
    assert pixels.shape == (37, 23, 3)
    assert np.array_equal(pixels, as_pillow_sees(photo))


@pytest.mark.parametrize("name", ["png RGB", "jpeg RGB", "jpeg RGB progressive", "webp lossy", "webp lossless"])
def test_what_stands_behind_a_picture_changes_nothing(name: str) -> None:
    data = STILL[name]
    for more in (b"\0", b"<script>", b"PK\3\4" * 99, data, bytes(range(256)) * 99):
        assert np.array_equal(images.decode_strange(data + more), images.decode_strange(data))


# What is refused, by what it is.

HTML = b"<html><body onload=alert(1)></body></html>"


WEBP = saved(picture("RGBA"), "WEBP", lossless=True, exif=exif(1))
assert WEBP[12:16] == b"VP8X"


def lying(width: int, height: int) -> bytes:
    return WEBP[:24] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + WEBP[30:]


BY_HEADER = {
    "a PNG of 20000x20000 bits": PNG + header(20_000, 20_000, 1, 0) + data_of(20_000, 800) + chunk(b"IEND", b""),
    "a PNG of 2**31 by 2**31": png(2**31, 2**31, data_of(1, 1)),
    "a PNG of 1 by 2**32-1": png(1, 2**32 - 1, data_of(1, 1)),
    "a JPEG of 65535x65535": of_size(STILL["jpeg RGB"], 65_535, 65_535),
    "a progressive JPEG of 65535x65535": of_size(STILL["jpeg RGB progressive"], 65_535, 65_535),
    "a WebP of 16384x16384": lying(1 << 14, 1 << 14),
    "a WebP of 2**24 by 2**24": lying(1 << 24, 1 << 24),
    "an animated PNG": FLAVOURS["apng"],
    "an animated WebP": FLAVOURS["webp animated"],
    "a PNG of no width": png(0, 64, data_of(64, 0)),
    "a PNG of no height": png(64, 0, data_of(0, 64)),
    "a PNG without a header": PNG + data_of(64, 64) + chunk(b"IEND", b""),
    "a JPEG of no width": of_size(STILL["jpeg RGB"], 0, 64),
    "a JPEG of no height": of_size(STILL["jpeg RGB"], 64, 0),
    "a JPEG of a thousand scans": scans(1000),
    "a GIF": saved(picture("P"), "GIF"),
    "a BMP": saved(picture(), "BMP"),
    "a TIFF": saved(picture(), "TIFF"),
    "an EPS": saved(picture(), "EPS"),
    "an ICO": saved(picture("RGBA"), "ICO"),
    "a PDF": saved(picture(), "PDF"),
    "a PPM": saved(picture(), "PPM"),
    "a PSD": b"8BPS\0\1" + bytes(99),
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "HTML": HTML,
    "a zip": b"PK\3\4" + bytes(99),
    "nothing": b"",
    "a magic alone": PNG,
    "HTML with the magic of a PNG": PNG + HTML * 9,
    "HTML with the magic of a JPEG": b"\xff\xd8\xff" + HTML * 9,
    "HTML with the magic of a WebP": b"RIFF\0\0\0\0WEBP" + HTML * 9,
    "a zip with the magic of a PNG": PNG + b"PK\3\4" + bytes(999),
}


def never(*_: object, **__: object) -> NoReturn:
    pytest.fail("a decoder was asked")


@pytest.mark.parametrize("what", BY_HEADER)
def test_no_decoder_ever_sees_what_its_header_gives_away(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(ValueError, match=r"^it (is|has) ") as caught:
        images.decode_strange(BY_HEADER[what])
    expect_plain(caught.value)


BY_DECODER = {
    "a PNG with two headers": PNG + header(64, 64) + header(8, 8) + data_of(64, 64) + chunk(b"IEND", b""),
    "a PNG that is larger in its second header": PNG + header(8, 8) + header(20_000, 20_000) + data_of(64, 64),
    "a PNG without pixels": png(64, 64),
    "a PNG of 9 bits": png(64, 64, data_of(64, 64), bits=9),
    "a PNG of colour type 7": png(64, 64, data_of(64, 64), colour=7),
    "a PNG of an unknown filter": png(64, 64, chunk(b"IDAT", zlib.compress(bytes([9] * 64 * 193)))),
    "a palette PNG without a palette": png(64, 64, data_of(64, 64), bits=16, colour=3),
    "a PNG of noise": png(64, 64, chunk(b"IDAT", bytes(range(256)))),
    "a PNG with a wrong sum": STILL["png RGB"].replace(b"IDAT", b"IDAT\1", 1),
    "a JPEG without tables": re.sub(rb"\xff\xdb.{67}", b"", STILL["jpeg RGB"], flags=re.S),
    "a JPEG of a great height that is cut short": of_size(STILL["jpeg RGB"], 37, 60_000)[:-200],
    "a JPEG with two sizes": STILL["jpeg RGB"].replace(
        b"\xff\xc0", b"\xff\xc0\0\x11\x08\0\x20\0\x20\3\1\x22\0\2\x11\1\3\x11\1\xff\xc0", 1
    ),
    "a WebP that is smaller than its canvas": lying(999, 999),
    "a WebP that is larger than its canvas": lying(8, 8),
    "a WebP with an unknown chunk first": b"RIFF\x40\0\0\0WEBPVP8L" + bytes(4) + b"\x2f" + bytes(60),
}


@pytest.mark.parametrize("what", BY_DECODER)
def test_what_contradicts_itself_is_refused_in_plain_words(what: str) -> None:
    with pytest.raises(ValueError, match=r"^it is damaged or cut short$|^its header contradicts itself$") as caught:
        images.decode_strange(BY_DECODER[what])
    expect_plain(caught.value)


def test_pixels_that_are_missing_are_black_and_none_of_our_memory() -> None:
    """A decoder takes such a file: its stream ends well, and too early."""
    white = zlib.compress(b"".join(b"\0" + b"\xff" * 192 for _ in range(32)))
    for _ in range(5):
        pixels = images.decode_strange(png(64, 64, chunk(b"IDAT", white)))
        assert (pixels[:32] == 255).all()
        assert not pixels[32:].any()


def test_pixels_beyond_the_picture_are_not_taken() -> None:
    rows = b"".join(b"\0" + bytes([row]) * 192 for row in range(64))
    pixels = images.decode_strange(png(64, 64, chunk(b"IDAT", zlib.compress(rows + bytes(100_000_000), 9))))
    assert pixels[:, 0, 0].tolist() == list(range(64))


def expect_plain(error: BaseException) -> None:
    """No address, no path, no name of a library or of a class."""
    said = str(error)
    assert len(said) < 100
    assert not re.search(r"0x|/|<|object|BytesIO|PIL|numpy|zlib|Error|Traceback", said), said


@pytest.mark.parametrize("name", [name for name in STILL if not re.search(r"\d", name) and len(STILL[name]) < 10_000])
def test_a_file_that_is_cut_short_is_refused_or_was_whole(name: str) -> None:
    """At every tenth byte, and at each of the last ones, where there may be nothing left that makes pixels."""
    data, whole, refused = STILL[name], images.decode_strange(STILL[name]), 0
    ends = [*range(0, len(data), max(10, len(data) // 150)), *range(len(data) - 20, len(data))]
    for end in ends:
        try:
            pixels = images.decode_strange(data[:end])
        except ValueError as error:
            refused += 1
            expect_plain(error)
        else:
            assert np.array_equal(pixels, whole), end
    assert refused > len(ends) / 2


# Anything at all.


def test_whatever_is_changed_in_a_file_it_is_a_picture_or_refused() -> None:
    drawn = random.Random(0)
    files = [data for data in STILL.values() if len(data) < 5000]
    taken = 0
    for _ in range(4000):
        data = bytearray(drawn.choice(files))
        for _ in range(drawn.randint(1, 5)):
            at = drawn.randrange(len(data))
            if drawn.random() < 0.7:
                data[at] = drawn.randrange(256)
            else:
                del data[at : at + drawn.randint(1, 30)]
        try:
            pixels = images.decode_strange(bytes(data))
        except ValueError as error:
            expect_plain(error)
            continue
        said = image_header(bytes(data))
        assert said is not None
        assert pixels.shape[:2] == (said.size.height, said.size.width)
        assert pixels.shape[2] in (3, 4)
        taken += 1
    assert 200 < taken < 3800


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([PNG, PNG + header(8, 8), b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8L"]), st.binary(max_size=300))
def test_noise_behind_a_magic_is_refused(magic: bytes, more: bytes) -> None:
    with pytest.raises(ValueError, match=r"^its? ") as caught:
        images.decode_strange(magic + more)
    expect_plain(caught.value)
