"""From what a client sent to what a backend is handed: the names of faults, the mask turned over, sizes as seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shared.cards import Task
from shared.errors import BadImage
from shared.messages import Parameters, Run
from tests.flavours import HEIGHT, WIDTH, exif, picture, saved
from worker import images, inputs

GOOD = saved(picture(), "PNG")


def run(task: Task) -> Run:
    asked = Parameters(prompt="x", width=64, height=64, steps=1, guidance=1)
    return Run(job="j", attempt=1, model="m", task=task, seeds=(1,), parameters=asked, epoch=0, digest="d")


def mask(size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> bytes:
    alpha = np.zeros((size[1], size[0], 4), np.uint8)
    alpha[0, 0, 3], alpha[0, 1, 3] = 255, 55
    return saved(Image.fromarray(alpha), "PNG", **options)


def test_pictures_come_in_their_order_and_opaque() -> None:
    clear = saved(Image.new("RGBA", (3, 2), (1, 2, 3, 0)), "PNG")
    read = inputs.read(run("edit"), [GOOD, memoryview(clear), GOOD])
    assert read.mask is None
    assert [pixels.shape for pixels in read.images] == [(HEIGHT, WIDTH, 3), (2, 3, 3), (HEIGHT, WIDTH, 3)]
    assert np.array_equal(read.images[0], np.asarray(picture()))
    assert (read.images[1] == 255).all()


def test_what_is_transparent_in_a_mask_is_to_be_painted() -> None:
    read = inputs.read(run("inpaint"), [GOOD, GOOD, mask()])
    assert len(read.images) == 2
    assert read.mask is not None
    assert read.mask.shape == (HEIGHT, WIDTH)
    assert read.mask[0, :3].tolist() == [0, 200, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_fits_the_picture_as_it_is_seen(orientation: int) -> None:
    turned = saved(picture(), "JPEG", exif=exif(orientation, prefix=True))
    seen = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    assert inputs.read(run("inpaint"), [turned, mask(seen)]).images[0].shape[:2] == seen[::-1]
    with pytest.raises(BadImage, match=r"Invalid mask image: it is .*, the first image is") as caught:
        inputs.read(run("inpaint"), [turned, mask(seen[::-1])])
    assert caught.value.param == "mask"


def test_a_mask_without_transparency_says_nothing() -> None:
    with pytest.raises(BadImage, match="no alpha channel") as caught:
        inputs.read(run("inpaint"), [GOOD, GOOD])
    assert caught.value.param == "mask"


@pytest.mark.parametrize(
    ("task", "sent", "name"),
    [
        ("edit", [b"junk"], "image"),
        ("variation", [GOOD[:60]], "image"),
        ("edit", [GOOD, b"junk"], "image[1]"),
        ("edit", [b"junk", GOOD], "image[0]"),
        ("inpaint", [b"junk", mask()], "image"),
        ("inpaint", [GOOD, b"junk"], "mask"),
        ("inpaint", [GOOD, b"junk", mask()], "image[1]"),
    ],
)
def test_the_picture_at_fault_is_named(task: Task, sent: list[bytes], name: str) -> None:
    with pytest.raises(BadImage, match=r"^Invalid image file for '") as caught:
        inputs.read(run(task), sent)
    assert caught.value.param == name
    assert f"'{name}'" in caught.value.message
    assert "0x" not in caught.value.message


def test_a_mask_may_be_of_any_format_that_has_transparency() -> None:
    clear = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    for data in (
        saved(clear, "WEBP", lossless=True),
        saved(clear.convert("LA"), "PNG"),
        saved(Image.new("P", (WIDTH, HEIGHT)), "PNG", transparency=0),
    ):
        read = inputs.read(run("inpaint"), [GOOD, data])
        assert read.mask is not None
        assert (read.mask == 255).all()
        assert images.laid_over(read.images[0], read.images[0], read.mask).shape == (HEIGHT, WIDTH, 3)
