"""What the embedded model is taught: scenes, their pictures, their wordings and the edits. numpy and Pillow only."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from worker.embedded import wording

SIDE = 64
SHAPES = ("circle", "square", "triangle", "star")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (228, 22, 26),
    "green": (10, 150, 40),
    "blue": (24, 60, 226),
    "yellow": (255, 226, 10),
    "orange": (255, 140, 0),
    "purple": (136, 28, 154),
    "pink": (255, 158, 188),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
COLOURS = tuple(PALETTE)
# Diameters of the circle, as fractions of the side. A star of under 20 pixels looks like a circle.
SIZES = {"small": 0.32, "medium": 0.41, "large": 0.50}
# Centres (x, y) as fractions of the side; .27 keeps the largest shape inside, and its centroid clear of the middle.
POSITIONS = {
    "center": (0.5, 0.5),
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
    "top": (0.5, 0.27),
    "bottom": (0.5, 0.73),
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
}
# How far a scene of each variant is moved (pixels) and scaled: enough that no pixel pattern can be learnt by heart.
VARIANTS = ((0.0, 0.0, 1.0), (1.2, -0.8, 0.96), (-1.1, 0.7, 1.04), (0.4, 1.3, 1.0))
UNSAID = 0.12  # of all scenes have the background that a caption need not say
_POSITION_WEIGHTS = (8, 3, 3, 3, 3, 2, 2, 2, 2)
_SIZE_WEIGHTS = (3, 4, 3)
_HELD_OUT = Path(__file__).with_name("held_out.json")


@dataclass(frozen=True)
class Scene:
    """One shape on one background, by names of the vocabulary above."""

    shape: str
    colour: str
    background: str
    position: str = "center"
    size: str = "medium"

    @property
    def triple(self) -> tuple[str, str, str]:
        """What is held out as a whole: shape, colour and background together."""
        return self.shape, self.colour, self.background

    def indices(self) -> tuple[int, int, int, int, int]:
        """Shape, size, position, colour, background as numbers, in the order of the latent pool's axes."""
        return (
            SHAPES.index(self.shape),
            list(SIZES).index(self.size),
            list(POSITIONS).index(self.position),
            COLOURS.index(self.colour),
            COLOURS.index(self.background),
        )


@dataclass(frozen=True)
class Edit:
    """An instruction, the scene it is given and the scene it asks for."""

    instruction: str
    before: Scene
    after: Scene


def held_out() -> frozenset[tuple[str, str, str]]:
    """The triples that no training sample shows; shared with the scorer as data."""
    return frozenset((s, c, b) for s, c, b in json.loads(_HELD_OUT.read_text(encoding="utf-8"))["triples"])


def mask(shape: str, size: str, position: str, variant: int = 0) -> NDArray[np.float32]:
    """Coverage of the shape, [SIDE, SIDE] in 0..1, antialiased by 8x8 supersampling."""
    dx, dy, scale = VARIANTS[variant]
    x, y = POSITIONS[position]
    return coverage(shape, x * SIDE + dx, y * SIDE + dy, SIZES[size] * SIDE * scale)


def coverage(shape: str, x: float, y: float, diameter: float) -> NDArray[np.float32]:
    """Like `mask` for any centre and diameter in pixels (VAE training wants more than the vocabulary)."""
    over = 8
    canvas = Image.new("L", (SIDE * over, SIDE * over))
    draw = ImageDraw.Draw(canvas)
    cx, cy, r = x * over, y * over, diameter * over / 2
    if shape == "circle":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
    elif shape == "square":
        draw.rectangle((cx - 0.9 * r, cy - 0.9 * r, cx + 0.9 * r, cy + 0.9 * r), fill=255)
    else:
        draw.polygon(_corners(shape, cx, cy, r), fill=255)
    small = canvas.reduce(over)
    return np.asarray(np.asarray(small) / 255, dtype=np.float32)


def _corners(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    # A little larger than the circle's radius, so that all shapes of one size look the same size.
    count, radii = {"triangle": (3, (1.16 * r,)), "star": (10, (1.15 * r, 0.48 * r))}[shape]
    angles = [-np.pi / 2 + 2 * np.pi * k / count for k in range(count)]
    return [
        (cx + radii[k % len(radii)] * float(np.cos(a)), cy + radii[k % len(radii)] * float(np.sin(a)))
        for k, a in enumerate(angles)
    ]


def paint(
    cover: NDArray[np.float32], colour: NDArray[np.float32], background: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[SIDE, SIDE, 3] in 0..255 from a coverage and two RGB colours."""
    return np.asarray(background + cover[..., None] * (colour - background), dtype=np.float32)


def picture(scene: Scene, variant: int = 0) -> Image.Image:
    """The scene as training shows it."""
    pixels = paint(mask(scene.shape, scene.size, scene.position, variant), _rgb(scene.colour), _rgb(scene.background))
    return Image.fromarray(pixels.round().astype(np.uint8))


def _rgb(colour: str) -> NDArray[np.float32]:
    return np.asarray(PALETTE[colour], dtype=np.float32)


def default_background(colour: str) -> str:
    """What a caption without a background means."""
    return "black" if colour == "white" else "white"


def scenes(rng: random.Random, forbidden: frozenset[tuple[str, str, str]]) -> Iterator[Scene]:
    """Endless random scenes of the vocabulary, none of a forbidden triple."""
    while True:
        colour, background = rng.sample(COLOURS, 2)
        if rng.random() < UNSAID:
            background = default_background(colour)
        scene = Scene(
            rng.choice(SHAPES),
            colour,
            background,
            rng.choices(list(POSITIONS), _POSITION_WEIGHTS)[0],
            rng.choices(list(SIZES), _SIZE_WEIGHTS)[0],
        )
        if scene.triple not in forbidden:
            yield scene


def edits(rng: random.Random, forbidden: frozenset[tuple[str, str, str]]) -> Iterator[Edit]:
    """Endless random edits; neither side shows a forbidden triple."""
    for before in scenes(rng, forbidden):
        kind = rng.choice(("colour", "background", "shape"))
        if kind == "colour":
            after = replace(
                before, colour=rng.choice([c for c in COLOURS if c not in (before.colour, before.background)])
            )
        elif kind == "background":
            after = replace(
                before, background=rng.choice([c for c in COLOURS if c not in (before.colour, before.background)])
            )
        else:
            after = replace(before, shape=rng.choice([s for s in SHAPES if s != before.shape]))
        if after.triple not in forbidden:
            yield Edit(_instruction(rng, kind, before, after), before, after)


def _instruction(rng: random.Random, kind: str, before: Scene, after: Scene) -> str:
    if kind == "colour":
        return wording.recolour(rng, before.shape, after.colour)
    if kind == "background":
        return wording.reground(rng, after.background)
    return wording.reshape(rng, before.shape, after.shape)


def caption(rng: random.Random, scene: Scene) -> str:
    """A random wording of the scene, lower case."""
    implied = default_background(scene.colour)
    return wording.caption(rng, scene.shape, scene.colour, scene.background, scene.position, scene.size, implied)
