"""What a model can do: its tasks, sizes, defaults and bounds, as its worker says and a request is held to."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# edit: by instruction; inpaint: only where a mask says; variation: another picture from noise laid over this one.
Task = Literal["generate", "edit", "inpaint", "variation"]
ImageFormat = Literal["png", "jpeg", "webp"]


class Part(BaseModel):
    """A frozen piece of a message. Unknown fields are ignored, so that a newer peer may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Size(Part):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class SizeRule(Part):
    """Which sizes a model makes exactly: those listed in `allowed`, or, without a list, multiples within bounds."""

    default: Size
    allowed: tuple[Size, ...] = ()
    multiple: int = 8
    min_side: int = 64
    max_side: int = 2048
    max_pixels: int = 2048 * 2048
    native: Size | None = None
    enlargement: Literal["none", "nearest"] = "none"

    def fits(self, size: Size) -> bool:
        """Whether the model makes this size exactly."""
        if self.allowed:
            return size in self.allowed
        return (
            all(
                self.min_side <= side <= self.max_side and side % self.multiple == 0
                for side in (size.width, size.height)
            )
            and size.width * size.height <= self.max_pixels
        )

    def closest(self, size: Size) -> Size:
        """The size the model makes that comes closest in shape, and among those the one closest in area."""
        if self.fits(size):
            return size
        if self.allowed:
            candidates = set(self.allowed)
        else:
            longest, shortest = max(size.width, size.height), min(size.width, size.height)
            most = min((self.max_pixels / (size.width * size.height)) ** 0.5, self.max_side / longest)
            scale = min(most, max(1.0, self.min_side / shortest))
            near = [self._sides_near(int(side * scale)) for side in (size.width, size.height)]
            candidates = {Size(width=w, height=h) for w in near[0] for h in near[1]}
        fitting = [c for c in candidates if self.fits(c)] or [self.default]

        def distance(made: Size) -> tuple[float, float]:
            shape = made.width * size.height / (made.height * size.width)
            area = made.width * made.height / (size.width * size.height)
            return max(shape, 1 / shape), max(area, 1 / area)

        return min(fitting, key=distance)

    def nearest(self, size: Size, count: int = 3) -> tuple[Size, ...]:
        """The `count` sizes that come closest to what was asked, nearest first."""
        if self.allowed:
            candidates = set(self.allowed)
        else:
            near = [self._sides_near(side) for side in (size.width, size.height)]
            candidates = {Size(width=w, height=h) for w in near[0] for h in near[1]} | {self.default}
        fitting = [c for c in candidates if self.fits(c)]
        return tuple(
            sorted(fitting, key=lambda c: (abs(c.width - size.width) + abs(c.height - size.height), c.width))[:count]
        )

    def _sides_near(self, side: int) -> set[int]:
        low, high = -(-self.min_side // self.multiple), self.max_side // self.multiple
        return {min(max(k, low), high) * self.multiple for k in (side // self.multiple, side // self.multiple + 1)}


class ModelCard(Part):
    """What a loaded model can do: its defaults and the bounds that a request is held to before it is queued.

    `max_images` bounds the pictures that one edit may work from, `max_masked_images` those that come with a mask; 0
    where the model has no such task. `max_batch` is how many pictures one call may make. `strength` is how much of a
    picture is made anew, above 0 and at most 1.
    """

    family: str
    revision: str
    tasks: tuple[Task, ...]
    sizes: SizeRule
    steps: int
    max_steps: int
    guidance: float
    max_guidance: float
    negative_prompt: bool
    max_images: int = 0
    max_masked_images: int = 0
    strength: float = 0.8
    transparent: bool = False
    scheduler: str = ""
    max_batch: int = 1
    description: str = ""
    vocabulary: tuple[str, ...] = ()
