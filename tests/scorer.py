"""Judges a picture of one coloured shape against what was asked for. No code of the training is used.

How it sees: the border tells the background, the largest connected patch of another colour is the shape, its
centroid tells the position, and its outline, compared by overlap with ideal shapes of the same area and centroid, tells
which shape it is. Pictures of any whole multiple of 64 are first reduced to 64x64 by area.
"""

import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (230, 20, 20),
    "green": (10, 145, 35),
    "blue": (25, 55, 230),
    "yellow": (255, 225, 10),
    "orange": (255, 140, 0),
    "purple": (135, 25, 155),
    "pink": (255, 160, 190),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
POSITIONS = ("center", "top left", "top right", "bottom left", "bottom right", "top", "bottom", "left", "right")
SIZES = {"small": 0.32, "medium": 0.41, "large": 0.50}
_HELD_OUT = Path(__file__).parent.parent / "worker" / "embedded" / "held_out.json"
_FEWEST_PIXELS = 60

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Expectation:
    """What the picture should show; None where the prompt says nothing and anything is right."""

    shape: str
    colour: str
    background: str | None
    position: str = "center"
    size: str | None = None


@dataclass(frozen=True)
class Score:
    """Which attributes are right."""

    shape: bool
    colour: bool
    background: bool
    position: bool

    @property
    def all(self) -> bool:
        """True if nothing is wrong."""
        return self.shape and self.colour and self.background and self.position


@dataclass(frozen=True)
class Seen:
    """What the scorer sees in a picture; None where it sees no shape at all."""

    background: str
    shape: str | None
    colour: str | None
    position: str | None
    size: str | None


def parse(prompt: str) -> Expectation:
    """Reads a simple prompt of one shape. ValueError if it names no shape or no colour of it."""
    text = re.sub(
        r"[^a-z ]+", " ", prompt.lower().replace("grey", "gray").replace("centre", "center").replace("middle", "center")
    )
    text = text.replace("upper", "top").replace("lower", "bottom").replace("backdrop", "background")
    words = text.split()
    shape = next((w for w in words if w in SHAPES), None)
    named = re.search(
        rf"({'|'.join(COLOURS)}) background|background (?:is |to )?({'|'.join(COLOURS)})", " ".join(words)
    )
    background = (named[1] or named[2]) if named else None
    rest = " ".join(words).replace(named[0], " ") if named else " ".join(words)
    colour = next((w for w in rest.split() if w in COLOURS), None)
    if shape is None or colour is None:
        raise ValueError(f"no coloured shape in {prompt!r}")
    row = next((w for w in words if w in ("top", "bottom")), "")
    column = next((w for w in words if w in ("left", "right")), "")
    size = {"small": "small", "tiny": "small", "large": "large", "big": "large", "medium": "medium"}
    return Expectation(
        shape,
        colour,
        background,
        f"{row} {column}".strip() or "center",
        next((size[w] for w in words if w in size), None),
    )


def score(image: bytes | NDArray[Any] | Image.Image, expectation: Expectation) -> Score:
    """Compares a picture (PNG bytes, RGB array [H, W, 3] of 0..255, or Pillow image) with what was asked for."""
    seen = look(image)
    return Score(
        shape=seen.shape == expectation.shape,
        colour=seen.colour == expectation.colour,
        background=seen.background == expectation.background
        or (expectation.background is None and seen.background != seen.colour),
        position=seen.position == expectation.position,
    )


def look(image: bytes | NDArray[Any] | Image.Image) -> Seen:
    """What the picture shows."""
    pixels = _native(image)
    border = np.concatenate(
        [
            pixels[:2].reshape(-1, 3),
            pixels[-2:].reshape(-1, 3),
            pixels[2:-2, :2].reshape(-1, 3),
            pixels[2:-2, -2:].reshape(-1, 3),
        ]
    )
    ground_rgb = np.median(border, axis=0)
    background = _nearest(ground_rgb)
    distance = np.linalg.norm(pixels - ground_rgb, axis=-1)
    patch = _largest(distance > 55.0)
    if patch.sum() < _FEWEST_PIXELS:
        return Seen(background, None, None, None, None)
    # The colour of the patch's inside, where blur does not reach; then half of the way to it is the outline.
    inside = patch & (distance >= np.percentile(distance[patch], 40))
    front_rgb = np.median(pixels[inside], axis=0)
    axis = front_rgb - ground_rgb
    cover = np.clip((pixels - ground_rgb) @ axis / float(axis @ axis), 0.0, 1.0)
    patch = _largest(cover > 0.5)
    cover = np.where(_grown(patch), cover, 0.0)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    area = float(cover.sum())
    y, x = float((rows * cover).sum() / area), float((columns * cover).sum() / area)
    shape, diameter = _shape(cover, x, y, area)
    return Seen(background, shape, _nearest(front_rgb), _position(x / SIDE, y / SIDE), _size(diameter / SIDE))


def held_out_triples() -> list[tuple[str, str, str]]:
    """Shape, colour and background combinations that training never showed."""
    return [(s, c, b) for s, c, b in json.loads(_HELD_OUT.read_text(encoding="utf-8"))["triples"]]


def held_out_prompts(count: int, seed: int) -> list[tuple[str, Expectation]]:
    """Prompts over the held-out triples in turn, in plain wordings, each with its expectation."""
    rng = random.Random(seed)
    triples = held_out_triples()
    rng.shuffle(triples)
    out = []
    for k in range(count):
        shape, colour, background = triples[k % len(triples)]
        position = rng.choice(POSITIONS) if rng.random() < 0.6 else "center"
        size = rng.choice(("", "", "small", "large"))
        subject = " ".join(w for w in (size, colour, shape) if w)
        place = "" if position == "center" else rng.choice((f"in the {position}", f"at the {position}", position))
        prompt = rng.choice(
            (
                f"a {subject} {place} on a {background} background",
                f"A {subject} {place} on a {background} background.",
                f"{subject} {place}, {background} background",
                f"a picture of a {subject} on a {background} background {place}",
                f"on a {background} background, a {subject} {place}",
                f"draw a {subject} {place} on a {background} background",
            )
        )
        prompt = re.sub(r" +", " ", prompt).replace(" ,", ",").replace(" .", ".").strip()
        out.append((prompt, Expectation(shape, colour, background, position, size or None)))
    return out


def _native(image: bytes | NDArray[Any] | Image.Image) -> NDArray[np.float64]:
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    pixels = np.asarray(image, dtype=np.float64)
    height, width, _ = pixels.shape
    if height % SIDE or width != height:
        raise ValueError(f"a picture of {width}x{height} is no whole multiple of {SIDE}x{SIDE}")
    times = height // SIDE
    return pixels.reshape(SIDE, times, SIDE, times, 3).mean(axis=(1, 3))


def _nearest(rgb: NDArray[np.float64]) -> str:
    return min(COLOURS, key=lambda name: float(np.sum((np.asarray(COLOURS[name]) - rgb) ** 2)))


def _largest(mask: Mask) -> Mask:
    """The largest 4-connected part of a mask, by spreading labels until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.max(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]], axis=0
        )
        spread = np.where(mask, spread, 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    if not mask.any():
        return mask
    names, counts = np.unique(labels[mask], return_counts=True)
    return np.asarray(labels == names[counts.argmax()])


def _grown(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    parts = [
        padded[1 + dy : 1 + dy + mask.shape[0], 1 + dx : 1 + dx + mask.shape[1]]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    return np.asarray(np.any(parts, axis=0))


def _outline(shape: str, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the middle to the outline in a direction (0 is up, clockwise), for an outer radius near 1."""
    if shape == "circle":
        return np.ones_like(angle)
    if shape in ("square", "triangle"):
        sides, turn = (4, 0.0) if shape == "square" else (3, np.pi / 3)
        half = np.pi / sides
        return np.cos(half) / np.cos((angle + turn + half) % (2 * half) - half)
    # A star: straight lines between tips at multiples of 72 degrees and dents between them.
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    dent, half = 0.42, np.pi / 5
    tip_x, dent_x, dent_y = 1.0, dent * np.cos(half), dent * np.sin(half)
    return tip_x * dent_y / (dent_y * np.cos(folded) + (tip_x - dent_x) * np.sin(folded))


def _shape(cover: NDArray[np.float64], x: float, y: float, area: float) -> tuple[str, float]:
    """The ideal shape that overlaps best, and the diameter of a circle of about its size."""
    fine = 3
    # A window around the shape is enough: every ideal shape of this area lies within it.
    reach = int(np.ceil(2.2 * np.sqrt(area / np.pi))) + 1
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    window = cover[top : int(y) + reach, left : int(x) + reach]
    outside = area - float(window.sum())
    height, width = window.shape
    rows, columns = (np.mgrid[0 : height * fine, 0 : width * fine] + 0.5) / fine
    rows, columns = rows + top, columns + left
    angle = np.arctan2(columns - x, -(rows - y))
    radius = np.hypot(columns - x, rows - y)
    whole = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    best, best_overlap, best_diameter = "", -1.0, 0.0
    for shape in SHAPES:
        unit_area = float(np.mean(_outline(shape, whole) ** 2) * np.pi)
        scale = np.sqrt(area / unit_area)
        ideal = (radius < scale * _outline(shape, angle)).reshape(height, fine, width, fine).mean(axis=(1, 3))
        overlap = float(np.minimum(ideal, window).sum() / (np.maximum(ideal, window).sum() + outside))
        if overlap > best_overlap:
            across = {"circle": 2.0, "square": 2.0 / (0.9 * np.sqrt(2)), "triangle": 2.0 / 1.16, "star": 2.0 / 1.15}[
                shape
            ]
            best, best_overlap, best_diameter = shape, overlap, across * scale
    return best, best_diameter


def _position(x: float, y: float) -> str:
    row = "top" if y < 0.385 else "bottom" if y > 0.615 else ""
    column = "left" if x < 0.385 else "right" if x > 0.615 else ""
    return f"{row} {column}".strip() or "center"


def _size(diameter: float) -> str:
    return min(SIZES, key=lambda name: abs(SIZES[name] - diameter))
