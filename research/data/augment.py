"""Random changes to images, with which classifiers are trained.

What timm's `create_transform` does for ImageNet (Wightman, pytorch-image-models,
timm/data), on Pillow, as transforms of uint8 images: `imagenet` is the recipe of DeiT
and Swin. Mixup and CutMix are the task's: they need a batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling

from research.data.sources import Example
from research.data.transforms import RandomFlip, Transform
from research.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in ImageNet, levels 0..255 being 0..1."""

IMAGENET_GREY = (124, 116, 104)
"""The mean as a colour."""

Interpolation = Literal["bilinear", "bicubic"]


def imagenet(size: int) -> tuple[Transform, ...]:
    """Random crops, flips, RandAugment and random erasing, as for Swin Transformers.

    Liu et al. 2021, arXiv:2103.14030, App. A2.1; "rand-m9-mstd0.5-inc1" and erasing
    with probability 0.25 in their configs. The color jitter that these name too is what
    timm does where there is no RandAugment.
    """
    return (RandomResizedCrop(size), RandomFlip(), RandAugment(), RandomErasing())


# Crops and sizes


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of `image`, scaled to `size` x `size` pixels.

    Szegedy et al. 2015, arXiv:1409.4842, section 6. Where ten draws do not fit into the
    image, its largest central part of an allowed shape is taken.

    Attributes:
      size: of the result.
      scale: of the part's area, as a fraction of the image's: uniform between the two.
      ratio: of its width to its height: its logarithm is uniform between the two.
      interpolation: between pixels; as in `Resize`.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The part, with as many channels."""
        image = example["image"]
        top, left, height, width = self._part(image.shape[0], image.shape[1], rng)
        part = image[top : top + height, left : left + width]
        return {**example, "image": _scaled(part, self.size, self.interpolation)}

    def _part(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Its first row and column, its height and width."""
        low, high = self.ratio
        for _ in range(10):
            area = rng.uniform(*self.scale) * height * width
            ratio = _log_uniform(rng, low, high)
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                top = int(rng.integers(height - tall + 1))
                return top, int(rng.integers(width - wide + 1)), tall, wide
        tall, wide = height, width
        if width < low * height:
            tall = round(width / low)
        elif width > high * height:
            wide = round(height * high)
        return (height - tall) // 2, (width - wide) // 2, tall, wide


@dataclass(frozen=True)
class RandomCrop:
    """A random `size` x `size` part of `image` with `padding` black pixels around it.

    He et al. 2016, arXiv:1512.03385, section 4.2: for images of CIFAR's size.
    """

    size: int
    padding: int = 4

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The part; a smaller image raises UserError."""
        margin = (self.padding, self.padding)
        padded = np.pad(example["image"], (margin, margin, (0, 0)))
        height, width, _ = padded.shape
        if min(height, width) < self.size:
            raise UserError(
                f"RandomCrop({self.size}): an image with its padding is only "
                f"{height}x{width}: put Resize({self.size}) before it"
            )
        top = int(rng.integers(height - self.size + 1))
        left = int(rng.integers(width - self.size + 1))
        part = padded[top : top + self.size, left : left + self.size]
        return {**example, "image": part}


@dataclass(frozen=True)
class Stretch:
    """`image` scaled to `size` x `size` pixels, whatever its proportions."""

    size: int
    interpolation: Interpolation = "bicubic"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The scaled image, with as many channels."""
        image = _scaled(example["image"], self.size, self.interpolation)
        return {**example, "image": image}


# RandAugment

Fill = tuple[int, ...]
Matrix = tuple[float | int, ...]

Op = Callable[[Image.Image, float, np.random.Generator, Fill], Image.Image]
"""An image changed as much as a level says, 0 to 1; `fill` is the colour of what comes
into view from outside. An operation that goes two ways chooses one."""


def auto_contrast(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Each channel stretched to all of 0..255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Each channel with its levels about equally frequent."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """The negative."""
    return ImageOps.invert(image)


def rotate(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """By up to 30 degrees about the middle."""
    degrees = _signed(30 * level, rng)
    return image.rotate(degrees, Resampling.BICUBIC, fillcolor=fill)


def shear_x(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Rows moved sideways by up to 0.3 pixels for each one down."""
    return _affine(image, (1, _signed(0.3 * level, rng), 0, 0, 1, 0), fill)


def shear_y(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Columns moved up or down by up to 0.3 pixels for each one to the right."""
    return _affine(image, (1, 0, 0, _signed(0.3 * level, rng), 1, 0), fill)


def translate_x(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Sideways by up to 0.45 of the width."""
    pixels = _signed(0.45 * level, rng) * image.width
    return _affine(image, (1, 0, pixels, 0, 1, 0), fill)


def translate_y(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Up or down by up to 0.45 of the height."""
    pixels = _signed(0.45 * level, rng) * image.height
    return _affine(image, (1, 0, 0, 0, 1, pixels), fill)


def posterize(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Only the highest bits of each pixel: from 4 down to none."""
    return _highest_bits(image, 4 - int(4 * level))


def posterize_less(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Only the highest bits of each pixel: from none up to 4."""
    return _highest_bits(image, int(4 * level))


def solarize(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """The negative of pixels from a level on: from 256 down to 0."""
    return ImageOps.solarize(image, 256 - int(256 * level))


def solarize_less(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """The negative of pixels from a level on: from 0 up to 256."""
    return ImageOps.solarize(image, int(256 * level))


def solarize_add(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Up to 110 levels added to pixels below 128."""
    more = int(110 * level)
    return _mapped(image, lambda value: value + more if value < 128 else value)


def color(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Saturation, by up to 0.9 more or less than 1."""
    return ImageEnhance.Color(image).enhance(_about_one(level, rng))


def contrast(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Contrast, by up to 0.9 more or less than 1."""
    return ImageEnhance.Contrast(image).enhance(_about_one(level, rng))


def brightness(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Brightness, by up to 0.9 more or less than 1."""
    return ImageEnhance.Brightness(image).enhance(_about_one(level, rng))


def sharpness(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Sharpness, by up to 0.9 more or less than 1."""
    return ImageEnhance.Sharpness(image).enhance(_about_one(level, rng))


def color_rising(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Saturation, from 0.1 up to 1.9."""
    return ImageEnhance.Color(image).enhance(0.1 + 1.8 * level)


def contrast_rising(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Contrast, from 0.1 up to 1.9."""
    return ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * level)


def brightness_rising(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Brightness, from 0.1 up to 1.9."""
    return ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * level)


def sharpness_rising(image: Image.Image, level: float, rng, fill) -> Image.Image:
    """Sharpness, from 0.1 up to 1.9."""
    return ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * level)


GEOMETRIC: tuple[Op, ...] = (rotate, shear_x, shear_y, translate_x, translate_y)

INCREASING: tuple[Op, ...] = (
    *(auto_contrast, equalize, invert, *GEOMETRIC),
    *(posterize, solarize, solarize_add),
    *(color, contrast, brightness, sharpness),
)
"""timm's set "inc1": the higher the level, the greater every change."""

ORIGINAL: tuple[Op, ...] = (
    *(auto_contrast, equalize, invert, *GEOMETRIC),
    *(posterize_less, solarize_less, solarize_add),
    *(color_rising, contrast_rising, brightness_rising, sharpness_rising),
)
"""timm's set without it, as in the first code of AutoAugment."""


@dataclass(frozen=True)
class RandAugment:
    """Random operations, one after the other (Cubuk et al. 2019, arXiv:1909.13719).

    The defaults are timm's "rand-m9-mstd0.5-inc1".

    Attributes:
      magnitude: of 10, and at most 10: the mean of the normal distribution that an
        operation's level is drawn from, times 10.
      magnitude_std: its standard deviation.
      num_ops: how many are drawn, with replacement.
      prob: of each of these being applied.
      ops: that are drawn from.
      fill: the colour of what comes into view from outside; of each channel.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_ops: int = 2
    prob: float = 0.5
    ops: tuple[Op, ...] = INCREASING
    fill: Fill = IMAGENET_GREY

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The changed image; other channels than `fill` has raise UserError."""
        channels = example["image"].shape[-1]
        if channels != len(self.fill):
            raise UserError(
                f"RandAugment: an image of {channels} channels, but fill={self.fill}: "
                "give one number for a channel"
            )
        image = _to_image(example["image"])
        for index in rng.integers(len(self.ops), size=self.num_ops):
            if rng.random() < self.prob:
                drawn = rng.normal(self.magnitude, self.magnitude_std) / 10
                level = min(max(drawn, 0.0), 1.0)
                image = self.ops[index](image, level, rng, self.fill)
        return {**example, "image": _to_array(image)}


def _mapped(image: Image.Image, function: Callable[[int], int]) -> Image.Image:
    table = [function(level) for level in range(256)]
    return image.point(table * len(image.getbands()))


def _highest_bits(image: Image.Image, num: int) -> Image.Image:
    # Not ImageOps.posterize, which refuses to leave none.
    return _mapped(image, lambda level: level & (0xFF << (8 - num)) & 0xFF)


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _about_one(level: float, rng: np.random.Generator) -> float:
    return 1 + _signed(0.9 * level, rng)


def _affine(image: Image.Image, matrix: Matrix, fill: Fill) -> Image.Image:
    """From where each pixel comes: (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Resampling.BICUBIC, fillcolor=fill
    )


# Colours and holes


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation by random factors, in a random order.

    Howard 2013, arXiv:1312.5402; as torchvision's, and what timm does in the place of
    RandAugment.

    Attributes:
      brightness, contrast, saturation: how far from 1 the factors may lie.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The changed image."""
        image = _to_image(example["image"])
        changes = (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        )
        for index in rng.permutation(len(changes)):
            enhancer, most = changes[index]
            factor = rng.uniform(max(0.0, 1 - most), 1 + most)
            image = enhancer(image).enhance(factor)
        return {**example, "image": _to_array(image)}


@dataclass(frozen=True)
class RandomErasing:
    """Noise in the place of a random box (Zhong et al. 2020, arXiv:1708.04896).

    As timm's with mode "pixel" and count 1: normal noise with the mean and the standard
    deviation of the data. A box that does not fit is drawn anew, ten times at most.

    Differs: noise beyond the levels 0..255 is cut off there; timm's is added after the
    images are normalised.

    Attributes:
      prob: of erasing.
      area: of the box, as a fraction of the image's: uniform between the two.
      ratio: of its height to its width: its logarithm is uniform between the two.
      mean, std: of the noise in each channel, levels 0..255 being 0..1.
    """

    prob: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """It, or it with a hole; other channels than `mean` has raise UserError."""
        image = example["image"]
        height, width, channels = image.shape
        if not channels == len(self.mean) == len(self.std):
            raise UserError(
                f"RandomErasing: an image of {channels} channels, but mean={self.mean} "
                f"and std={self.std}: give one number of each for a channel"
            )
        if rng.random() >= self.prob:
            return example
        mean, std = np.array(self.mean), np.array(self.std)
        for _ in range(10):
            area = rng.uniform(*self.area) * height * width
            ratio = _log_uniform(rng, *self.ratio)
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if tall < height and wide < width:
                top = int(rng.integers(height - tall + 1))
                left = int(rng.integers(width - wide + 1))
                noise = rng.standard_normal((tall, wide, channels), np.float32)
                levels = 255 * (mean + std * noise)
                image = image.copy()
                levels = np.rint(levels).clip(0, 255)
                image[top : top + tall, left : left + wide] = levels
                break
        return {**example, "image": image}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


# Pillow knows a single channel only without its axis.


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _to_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


def _scaled(pixels: np.ndarray, size: int, interpolation: Interpolation) -> np.ndarray:
    resampling = Resampling[interpolation.upper()]
    return _to_array(_to_image(pixels).resize((size, size), resampling))
