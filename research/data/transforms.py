"""What happens to one example between its source and the batch, on the host.

A transform is a callable `(example, rng) -> example`. `rng` is a generator of this
example's own, which depends on the seed and on the example's place in the stream and
on nothing else; what is not random leaves it alone. Images stay uint8: the task maps
them to the data range on the device.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from research.data.sources import Example
from research.errors import UserError


@runtime_checkable
class Transform(Protocol):
    """One example to one example."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """A new example; the given one is not changed in place."""
        ...


@dataclass(frozen=True)
class RandomFlip:
    """Mirror `image` left to right, half of the time."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The image or its mirror image."""
        if rng.random() < 0.5:
            return example
        return {**example, "image": example["image"][:, ::-1]}


@dataclass(frozen=True)
class Resize:
    """Scale `image`, keeping its proportions, until its shorter side has `size` pixels.

    Pillow widens the filter when it shrinks, so that nothing aliases, and rounds to
    whole levels. The longer side's remainder of a pixel is dropped, as in torchvision.

    Attributes:
      size: of the shorter side.
      interpolation: between pixels.
    """

    size: int
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The scaled image, with as many channels."""
        height, width, channels = example["image"].shape
        shorter = min(height, width)
        height, width = self.size * height // shorter, self.size * width // shorter
        # Pillow knows a single channel only without its axis.
        pixels = example["image"][..., 0] if channels == 1 else example["image"]
        image = Image.fromarray(pixels).resize(
            (width, height), Resampling[self.interpolation.upper()]
        )
        return {**example, "image": np.asarray(image).reshape(height, width, channels)}


@dataclass(frozen=True)
class CenterCrop:
    """The middle `size` x `size` pixels of `image`."""

    size: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The cropped image; a smaller one raises UserError."""
        height, width, _ = example["image"].shape
        if min(height, width) < self.size:
            raise UserError(
                f"CenterCrop({self.size}): an image is only {height}x{width}: put "
                f"Resize({self.size}) before it"
            )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        image = example["image"][top : top + self.size, left : left + self.size]
        return {**example, "image": image}


@dataclass(frozen=True)
class Pad:
    """Zeros around `image` up to `size` x `size` pixels, such as 28 to 32."""

    size: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The padded image; a larger one raises UserError."""
        height, width, channels = example["image"].shape
        if max(height, width) > self.size:
            raise UserError(
                f"Pad({self.size}): an image is already {height}x{width}: put "
                f"Resize or CenterCrop({self.size}) before it"
            )
        top, left = (self.size - height) // 2, (self.size - width) // 2
        padded = np.zeros((self.size, self.size, channels), np.uint8)
        padded[top : top + height, left : left + width] = example["image"]
        return {**example, "image": padded}


@dataclass(frozen=True)
class Rename:
    """Other names for some parts, `((old, new), ...)`; the rest is left out."""

    names: tuple[tuple[str, str], ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The named parts; one that is not there raises UserError."""
        for old, _ in self.names:
            if old not in example:
                raise UserError(f"Rename: no {old!r}; it has {', '.join(example)}")
        return {new: example[old] for old, new in self.names}
