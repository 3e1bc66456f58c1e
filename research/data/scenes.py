"""Scenes that are made up: coloured shapes before a background, and all about them.

As many as wanted, each a pure function of (seed, index): no version of NumPy and no
machine changes a pixel, for nothing is rounded but sums, products and quotients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int16, Int32

from research.data.generated import draws, stream
from research.data.sources import Example
from research.detection.masks import areas_of, boxes_of
from research.errors import UserError

Mask = Bool[np.ndarray, "height width"]

_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], Mask]] = {
    # Of coordinates to the right and downwards, within the unit circle.
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.7,
    "triangle": lambda u, v: (v <= 0.5) & (1.732 * abs(u) <= v + 1),
    "diamond": lambda u, v: abs(u) / 0.6 + abs(v) <= 1,
    "cross": lambda u, v: (
        (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 0.95)
    ),
    "ring": lambda u, v: abs(u * u + v * v - 0.65) <= 0.35,
}

SHAPES = tuple(_SHAPES)
"""What objects are, by class."""

COLORS = {
    "red": (205, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 60, 210),
    "yellow": (235, 205, 40),
    "purple": (135, 50, 165),
    "orange": (240, 130, 25),
    "white": (240, 240, 240),
    "black": (30, 30, 30),
}
"""Of objects, by name; every object's is a little off."""

_ABOVE = {"sky": (150, 190, 230), "wall": (165, 150, 140), "fog": (190, 190, 195)}
_BELOW = {"grass": (120, 140, 70), "sand": (205, 185, 140), "water": (70, 110, 150)}

BACKGROUNDS = (*_ABOVE, *_BELOW)
"""What is behind objects; by class they come after the shapes."""

_FIRST_NOISE = 2**32
"""The place in an example's stream where the pixels' words begin."""


@dataclass(frozen=True)
class Scenes:
    """Shapes of several colours and sizes, which may hide parts of each other.

    An example has, for n objects, the front one last:

    - `image`, uint8 (height, width, 3);
    - `boxes`, float32 (n, 4), (x0, y0, x1, y1) in pixels, around what can be seen;
    - `classes`, int32 (n,), by `SHAPES`, then `BACKGROUNDS`; `names` says which;
    - `colors`, int32 (n,), by `COLORS`, -1 for a background;
    - `areas`, float32 (n,), the pixels that can be seen, and `crowd`, bool (n,), False;
    - `segments`, int32 (height, width): i + 1 where object i is seen, 0 where none is;
    - `caption`: "a red circle left of a blue square, and a white ring, grass under
      sky"; of the two objects at the back it says how they stand;
    - `image_id`, int32.

    Attributes:
      num: how many scenes.
      sizes: height and width, one of these for each.
      shapes: the names of those that occur.
      fewest: objects in a scene.
      most: objects in a scene; fewer where there is no room.
      radii: of the smallest and the largest, beside the shorter side of the image.
      least_seen: no object hides more of another than leaves this share of it.
      panoptic: whether backgrounds are objects too, after the others, so that every
        pixel belongs to one.
      seed: other seeds give other scenes.
    """

    num: int
    sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    shapes: tuple[str, ...] = SHAPES
    fewest: int = 1
    most: int = 4
    radii: tuple[float, float] = (0.1, 0.25)
    least_seen: float = 0.5
    panoptic: bool = False
    seed: int = 0

    def __post_init__(self):
        if unknown := set(self.shapes) - set(SHAPES):
            raise UserError(
                f"Scenes has no shapes {', '.join(sorted(unknown))}: it has "
                f"{', '.join(SHAPES)}"
            )
        if not 0 <= self.fewest <= self.most:
            raise UserError(
                f"Scenes of {self.fewest} to {self.most} objects: expected 0 <= fewest "
                "<= most"
            )
        if not 0 < self.radii[0] <= self.radii[1] <= 0.5:
            raise UserError(
                f"Scenes with radii {self.radii}: expected 0 < smallest <= largest "
                "<= 0.5"
            )

    @property
    def names(self) -> dict[int, str]:
        """By class."""
        known = (*SHAPES, *BACKGROUNDS) if self.panoptic else SHAPES
        return dict(enumerate(known))

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.num:
            raise IndexError(index)
        pull = stream(self.seed, index).__next__
        height, width = self.sizes[_choose(len(self.sizes), pull)]
        above, below = (
            list(kinds)[_choose(len(kinds), pull)] for kinds in (_ABOVE, _BELOW)
        )
        ground = _ground(height, width, pull)
        objects, owner = self._objects(height, width, pull)
        palette = [_ABOVE[above], _BELOW[below]]
        for thing in objects:
            red, green, blue = (
                light + _between(-18, 19, pull) for light in COLORS[thing.color]
            )
            palette.append((red, green, blue))
        noise = self._noise(index, height, width)
        light = np.where(ground, _texture(below, noise), _texture(above, noise))
        light = np.where(owner > 0, noise >> 4, light)
        paints = np.where(owner > 0, owner + 1, ground)
        canvas = np.array(palette, np.int16)[paints] + light[..., None]
        classes = [SHAPES.index(thing.shape) for thing in objects]
        if self.panoptic:
            for kind, where in ((above, ~ground), (below, ground)):
                free = where & (owner == 0)
                if free.any():
                    classes.append(len(SHAPES) + BACKGROUNDS.index(kind))
                    owner[free] = len(classes)
        colors = [list(COLORS).index(thing.color) for thing in objects]
        return {
            "image": canvas.clip(0, 255).astype(np.uint8),
            "boxes": boxes_of(owner, len(classes)),
            "classes": np.array(classes, np.int32),
            "colors": np.array(colors + [-1] * (len(classes) - len(colors)), np.int32),
            "areas": areas_of(owner, len(classes)),
            "crowd": np.zeros(len(classes), bool),
            "segments": owner,
            "caption": _caption(objects, f"{below} under {above}"),
            "image_id": np.int32(index % 2**31),
        }

    def annotation(self, index: int) -> Example:
        """All but the image, and its `size`: int32, height and width."""
        example = self[index]
        size = np.array(example.pop("image").shape[:2], np.int32)
        return {**example, "size": size}

    def _noise(
        self, index: int, height: int, width: int
    ) -> Int16[np.ndarray, "height width"]:
        """A number from -128 to 127 for every pixel."""
        words = draws(self.seed, index, _FIRST_NOISE, -(-height * width // 8))
        numbers = words.astype("<u8").view(np.uint8)[: height * width]
        return numbers.reshape(height, width).astype(np.int16) - 128

    def _objects(
        self, height: int, width: int, pull: Callable[[], int]
    ) -> tuple[list["_Thing"], Int32[np.ndarray, "height width"]]:
        """The objects from back to front, and the number of the one at each pixel."""
        owner = np.zeros((height, width), np.int32)
        objects: list[_Thing] = []
        whole, seen = np.zeros((2, 1 + self.most), np.int64)
        wanted = _between(self.fewest, self.most + 1, pull)
        for _ in range(8 * wanted):
            if len(objects) == wanted:
                break
            thing = self._draw(height, width, pull)
            window, mask = _mask(thing, height, width)
            left = seen - np.bincount(owner[window][mask], minlength=len(seen))
            if mask.any() and (left[1:] >= self.least_seen * whole[1:]).all():
                objects.append(thing)
                owner[window][mask] = len(objects)
                seen = left
                seen[len(objects)] = whole[len(objects)] = mask.sum()
        return objects, owner

    def _draw(self, height: int, width: int, pull: Callable[[], int]) -> "_Thing":
        shape = self.shapes[_choose(len(self.shapes), pull)]
        color = list(COLORS)[_choose(len(COLORS), pull)]
        low, high = self.radii
        radius = min(height, width) * (low + (high - low) * _fraction(pull))
        x = radius + (width - 2 * radius) * _fraction(pull)
        y = radius + (height - 2 * radius) * _fraction(pull)
        # The tangent of half the angle: cosines differ between machines.
        return _Thing(shape, color, x, y, radius, 0.4 * _fraction(pull) - 0.2)


class _Thing(NamedTuple):
    """One object: its center and radius in pixels, how far it leans."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    lean: float

    def __str__(self) -> str:
        article = "an" if self.color[0] in "aeiou" else "a"
        return f"{article} {self.color} {self.shape}"


def _mask(thing: _Thing, height: int, width: int) -> tuple[tuple[slice, ...], Mask]:
    """The part of the image around an object, and its pixels there."""
    (top, left), (bottom, right) = (
        (int(max(0, y)), int(max(0, x)))
        for y, x in (
            (thing.y - thing.radius, thing.x - thing.radius),
            (thing.y + thing.radius + 1, thing.x + thing.radius + 1),
        )
    )
    bottom, right = min(bottom, height), min(right, width)
    y = (np.arange(top, bottom)[:, None] + 0.5 - thing.y) / thing.radius
    x = (np.arange(left, right)[None, :] + 0.5 - thing.x) / thing.radius
    squared = thing.lean * thing.lean
    cosine, sine = (1 - squared) / (1 + squared), 2 * thing.lean / (1 + squared)
    mask = _SHAPES[thing.shape](x * cosine + y * sine, y * cosine - x * sine)
    return (slice(top, bottom), slice(left, right)), mask


def _ground(height: int, width: int, pull: Callable[[], int]) -> Mask:
    """Where the lower background is: below a line that may slope."""
    level = height * (0.35 + 0.35 * _fraction(pull))
    slope = (_fraction(pull) - 0.5) * 0.4
    line = level + slope * (np.arange(width) - 0.5 * width)
    return np.arange(height)[:, None] > line[None, :]


def _texture(
    kind: str, noise: Int16[np.ndarray, "height width"]
) -> Int16[np.ndarray, "height width"]:
    """How much lighter than its color a background is, over the whole image."""
    height, width = noise.shape
    y = np.arange(height, dtype=np.int32)[:, None]
    x = np.arange(width, dtype=np.int32)[None, :]
    if kind == "wall":
        row = y // 6
        joint = (y % 6 == 0) | ((x + 5 * (row % 2)) % 10 == 0)
        return np.where(joint, np.int16(-40), noise >> 5)
    if kind == "water":
        wave = abs((2 * y + abs(x % 24 - 12)) % 20 - 10) * 4 - 20
        return wave.astype(np.int16) + (noise >> 5)
    if kind == "grass":
        return (noise >> 2) + (np.roll(noise, 1, axis=0) >> 3)
    if kind == "sand":
        return np.where(noise > 100, np.int16(-40), noise >> 4)
    return (y * 40 // height - 20).astype(np.int16) + (noise >> 6)


def _caption(objects: list[_Thing], background: str) -> str:
    if not objects:
        return background
    words = [str(thing) for thing in objects]
    if len(objects) > 1:
        first, second = objects[:2]
        right, down = second.x - first.x, second.y - first.y
        if abs(right) >= abs(down):
            relation = "left of" if right > 0 else "right of"
        else:
            relation = "above" if down > 0 else "below"
        words[:2] = [f"{words[0]} {relation} {words[1]}"]
    return ", ".join([words[0], *(f"and {word}" for word in words[1:]), background])


def _choose(number: int, pull: Callable[[], int]) -> int:
    """One of 0 to `number` - 1, as `generated.below`."""
    return (pull() >> 32) * number >> 32


def _between(low: int, high: int, pull: Callable[[], int]) -> int:
    return low + _choose(high - low, pull)


def _fraction(pull: Callable[[], int]) -> float:
    """In [0, 1), a multiple of 2^-53."""
    return (pull() >> 11) * 2.0**-53
