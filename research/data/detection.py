"""Images with objects: what happens to boxes and masks between source and batch.

An example of a source has `image`, `image_id`, and for its n objects `boxes`, float32
(n, 4), (x0, y0, x1, y1) in pixels, `classes`, int32 (n,), and `crowd`, bool (n,); and,
where it has masks, either `masks`, bool (n, height, width), or, of masks that do not
overlap, `segments`, int32 (height, width): i + 1 where object i is. `CleanObjects`
makes of it what the other transforms take, and `ToTargets` what a batch holds.

The transforms are those of DETR: N. Carion et al., "End-to-End Object Detection with
Transformers", ECCV 2020, arXiv:2005.12872, and datasets/{coco,transforms}.py of
facebookresearch/detr.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image
from PIL.Image import Resampling

from research.data.loader import Spec
from research.data.sources import Example, Source
from research.data.transforms import Transform
from research.detection.masks import paint, renumbered, resized
from research.errors import UserError

Size = tuple[int, int]
"""Height and width, in pixels."""

_OF_OBJECTS = ("boxes", "classes", "crowd", "areas", "colors", "masks")
"""Parts of an example that have a row for each object."""


@runtime_checkable
class Annotated(Source, Protocol):
    """A source that tells of its objects without decoding an image."""

    @property
    def names(self) -> dict[int, str]:
        """What the classes are called."""
        ...

    def annotation(self, index: int) -> Example:
        """What an example has but image and masks, and `size`: int32, height, width."""
        ...


def annotations(source: Source) -> Callable[[int], Example]:
    """`Annotated.annotation` of any source; where it has none, examples are made."""
    if isinstance(source, Annotated):
        return source.annotation

    def made(index: int) -> Example:
        example = dict(source[index])
        size = np.array(example.pop("image").shape[:2], np.int32)
        return {**example, "size": size}

    return made


def names_of(source: Source) -> dict[int, str]:
    """What the classes are called, where the source says it."""
    return source.names if isinstance(source, Annotated) else {}


# What is wrong with objects


@dataclass(frozen=True)
class CleanObjects:
    """Only what can be learnt from, as DETR's data: to be the first of the transforms.

    Crowds are dropped; boxes are cut at the border of the image, and those dropped that
    have no area then. `masks` are painted into one map of `segments`, the smaller over
    the larger. The image's size is kept as `original_size`, int32, height and width;
    `areas`, which are no longer true, are not.

    Attributes:
      crowds: whether they stay; in DETR's panoptic data they do.
    """

    crowds: bool = False

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Fewer objects, or as many."""
        height, width, _ = example["image"].shape
        boxes = _clipped(example["boxes"], height, width)
        keep = _has_area(boxes) & (self.crowds | ~example["crowd"])
        size = np.array([height, width], np.int32)
        example = _kept({**example, "boxes": boxes, "original_size": size}, keep)
        example.pop("areas", None)
        if "masks" in example:
            example["segments"] = paint(example.pop("masks"))
        return example

    def measure(self, size: Size, rng: np.random.Generator) -> Size:
        """The same."""
        return size


def _clipped(
    boxes: Float32[np.ndarray, "objects 4"], height: int, width: int
) -> Float32[np.ndarray, "objects 4"]:
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def _has_area(boxes: Float32[np.ndarray, "objects 4"]) -> Bool[np.ndarray, "objects"]:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _kept(example: Example, keep: Bool[np.ndarray, "objects"]) -> Example:
    """Without the other objects; their pixels belong to none."""
    rows = {name: example[name][keep] for name in _OF_OBJECTS if name in example}
    if "segments" in example and not keep.all():
        rows["segments"] = renumbered(example["segments"], keep)
    return {**example, **rows}


def counted(source: Annotated) -> str:
    """The objects of a source, and how many `CleanObjects` changes or takes out."""
    numbers: Counter[str] = Counter()
    for index in range(len(source)):
        found = source.annotation(index)
        height, width = found["size"].tolist()
        boxes, crowd = found["boxes"], found["crowd"]
        inside = _clipped(boxes, height, width)
        # By more than float32 rounds.
        beyond = (abs(boxes - inside) > 1e-2).any(axis=1)
        numbers["objects"] += len(boxes)
        numbers["empty"] += not len(boxes)
        numbers["crowds"] += int(crowd.sum())
        numbers["flat"] += int((~_has_area(inside) & ~crowd).sum())
        numbers["beyond"] += int((beyond & ~crowd).sum())
    return (
        f"{numbers['objects']} objects: {numbers['crowds']} crowds or difficult, "
        f"{numbers['flat']} without area, {numbers['beyond']} beyond the border; "
        f"{numbers['empty']} images without objects"
    )


# Transforms


@runtime_checkable
class Measurable(Transform, Protocol):
    """A transform that tells the size of its result without the image.

    It draws the same numbers for it.
    """

    def measure(self, size: Size, rng: np.random.Generator) -> Size:
        """The size of an image of `size` after the transform."""
        ...


@dataclass(frozen=True)
class FlipObjects:
    """Mirror the image and its objects left to right, half of the time."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example or its mirror image; a caption stays as it is."""
        if rng.random() < 0.5:
            return example
        width = example["image"].shape[1]
        x0, y0, x1, y1 = example["boxes"].T
        mirrored = np.stack([width - x1, y0, width - x0, y1], axis=1)
        result = {**example, "image": example["image"][:, ::-1], "boxes": mirrored}
        if "segments" in example:
            result["segments"] = example["segments"][:, ::-1]
        return result

    def measure(self, size: Size, rng: np.random.Generator) -> Size:
        """The same."""
        rng.random()
        return size


@dataclass(frozen=True)
class ResizeObjects:
    """Scale the image and its objects, keeping the proportions.

    Bilinear, without aliasing; segments take the nearest pixel.

    Attributes:
      shorter: pixels of the shorter side: one of these, drawn.
      longest: pixels of the longer side at most, for which the shorter one gives way;
        0 for any.
    """

    shorter: tuple[int, ...]
    longest: int = 0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The scaled example."""
        image = example["image"]
        height, width = self.measure(image.shape[:2], rng)
        if (height, width) == image.shape[:2]:
            return example
        pixels = np.asarray(
            Image.fromarray(image).resize((width, height), Resampling.BILINEAR)
        )
        scale = np.array([width / image.shape[1], height / image.shape[0]], np.float32)
        result = {
            **example,
            "image": pixels,
            "boxes": example["boxes"] * np.tile(scale, 2),
        }
        if "segments" in example:
            result["segments"] = resized(example["segments"], height, width)
        return result

    def measure(self, size: Size, rng: np.random.Generator) -> Size:
        """As get_size_with_aspect_ratio of DETR's datasets/transforms.py."""
        shorter = self.shorter[int(rng.integers(len(self.shorter)))]
        small, large = min(size), max(size)
        if self.longest and large / small * shorter > self.longest:
            shorter = round(self.longest * small / large)
        if shorter == small:
            return size
        longer = int(shorter * large / small)
        return (shorter, longer) if size[0] <= size[1] else (longer, shorter)


@dataclass(frozen=True)
class CropObjects:
    """Cut out a part of the image; objects of which none is inside are dropped.

    Boxes are cut at its border.

    Attributes:
      smallest: pixels of a side, unless the image has fewer.
      largest: pixels of a side.
    """

    smallest: int = 384
    largest: int = 600

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The part."""
        (top, left), (height, width) = self._draw(example["image"].shape[:2], rng)
        part = slice(top, top + height), slice(left, left + width)
        corner = np.array([left, top, left, top], np.float32)
        boxes = _clipped(example["boxes"] - corner, height, width)
        result = {**example, "image": example["image"][part], "boxes": boxes}
        if "segments" in example:
            result["segments"] = example["segments"][part]
        return _kept(result, _has_area(boxes))

    def measure(self, size: Size, rng: np.random.Generator) -> Size:
        """The size of the part."""
        return self._draw(size, rng)[1]

    def _draw(self, size: Size, rng: np.random.Generator) -> tuple[Size, Size]:
        """The upper left corner, and the size."""
        height, width = (
            int(rng.integers(min(side, self.smallest), min(side, self.largest) + 1))
            for side in size
        )
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        return (top, left), (height, width)


@dataclass(frozen=True)
class OneOf:
    """One of several rows of transforms, each as likely."""

    choices: tuple[tuple[Measurable, ...], ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example after the transforms that were drawn."""
        for transform in self._draw(rng):
            example = transform(example, rng)
        return example

    def measure(self, size: Size, rng: np.random.Generator) -> Size:
        """The size after them."""
        for transform in self._draw(rng):
            size = transform.measure(size, rng)
        return size

    def _draw(self, rng: np.random.Generator) -> tuple[Measurable, ...]:
        return self.choices[int(rng.integers(len(self.choices)))]


@dataclass(frozen=True)
class ToTargets:
    """What a batch of detection holds, with zeros in place of further objects.

    - `image`, uint8 (height, width, 3), and its `size`, int32, height and width;
    - `boxes`, float32 (num_objects, 4): (center x, center y, width, height) beside the
      image's size; `classes`, int32 (num_objects,);
    - `present`, float32 (num_objects,): 1 for objects, 0 where there is none;
    - `segments`, where the example has them, int32 (height, width);
    - `image_id`, int32, and `original_size`, int32, height and width.

    Attributes:
      num_objects: rows; an example with more objects raises UserError.
    """

    num_objects: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The parts above and no others."""
        if "original_size" not in example:
            raise UserError(
                "ToTargets: an example has no original_size: put CleanObjects before "
                "all other transforms"
            )
        height, width, _ = example["image"].shape
        num = len(example["boxes"])
        if num > self.num_objects:
            raise UserError(
                f"ToTargets({self.num_objects}): image {example['image_id']} has {num} "
                f"objects: expected at most {self.num_objects}; raise num_objects"
            )
        x0, y0, x1, y1 = example["boxes"].T
        boxes = np.zeros((self.num_objects, 4), np.float32)
        boxes[:num] = np.stack(
            [
                (x0 + x1) / (2 * width),
                (y0 + y1) / (2 * height),
                (x1 - x0) / width,
                (y1 - y0) / height,
            ],
            axis=1,
        )
        classes = np.zeros(self.num_objects, np.int32)
        classes[:num] = example["classes"]
        present = np.zeros(self.num_objects, np.float32)
        present[:num] = 1
        result = {
            "image": example["image"],
            "size": np.array([height, width], np.int32),
            "boxes": boxes,
            "classes": classes,
            "present": present,
            "image_id": np.int32(example["image_id"]),
            "original_size": example["original_size"],
        }
        if "segments" in example:
            result["segments"] = example["segments"]
        return result

    def measure(self, size: Size, rng: np.random.Generator) -> Size:
        """The same."""
        return size


def targets_spec(size: Size, num_objects: int, segments: bool = False) -> Spec:
    """`Data.spec` of what `ToTargets` makes, for images up to `size`."""
    spec: Spec = {
        "image": ((*size, 3), "uint8"),
        "size": ((2,), "int32"),
        "boxes": ((num_objects, 4), "float32"),
        "classes": ((num_objects,), "int32"),
        "present": ((num_objects,), "float32"),
        "image_id": ((), "int32"),
        "original_size": ((2,), "int32"),
    }
    return {**spec, "segments": (size, "int32")} if segments else spec


SCALES = tuple(range(480, 801, 32))
"""Of the shorter side in DETR's training."""

SMALLER_SIZES = (
    (576, 576),
    (576, 800),
    (800, 576),
    (672, 928),
    (928, 672),
    (800, 800),
    (800, 1088),
    (1088, 800),
    (800, 1344),
    (1344, 800),
)
"""For `GroupedData` in DETR's training and evaluation, beside 1344x1344.

Of COCO's images they leave 23 % of a batch's pixels to padding, and need the largest
size for 1.6 % of the batches. Sixteen images as they come, padded to the largest of
them, have 53 %.
"""


def detr_training(
    num_objects: int = 100,
    scales: tuple[int, ...] = SCALES,
    longest: int = 1333,
    crowds: bool = False,
) -> tuple[Measurable, ...]:
    """Flips, and scales of which half are of a part of the image.

    Args:
      num_objects: rows of a batch's objects.
      scales: of the shorter side; parts are cut out at 400 to 600 of 800.
      longest: of the longer side.
      crowds: as of `CleanObjects`.
    """
    unit = scales[-1] / 800
    at = tuple(round(unit * side) for side in (400, 500, 600))
    crop = CropObjects(round(unit * 384), round(unit * 600))
    scale = ResizeObjects(scales, longest)
    return (
        CleanObjects(crowds),
        FlipObjects(),
        OneOf(((scale,), (ResizeObjects(at), crop, scale))),
        ToTargets(num_objects),
    )


def detr_evaluation(
    num_objects: int = 100, shorter: int = 800, longest: int = 1333
) -> tuple[Measurable, ...]:
    """One scale."""
    return (
        CleanObjects(),
        ResizeObjects((shorter,), longest),
        ToTargets(num_objects),
    )
