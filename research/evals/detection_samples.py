"""What a task finds, drawn on the images."""

import colorsys
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from research.data.detection import names_of
from research.data.sources import Example
from research.detection.masks import resized, upsampled
from research.evals.base import Context
from research.evals.detections import (
    Detected,
    DetectingTask,
    as_logits,
    detections,
    source_of,
)
from research.tasks.base import Variables

Picture = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class DetectionSamples:
    """Draws what there is and what is found in the first images of a split.

    `<step>.png` has pairs of pictures: the image with its true boxes and, where the
    source has them, masks; and beside it the image with the boxes, classes and scores
    that were found, and with masks, where the task finds some.

    Reports `found`, the mean number of boxes in a picture, and `there`, of true ones.

    Attributes:
      split: of the data.
      num: how many images.
      batch_size: images at a time.
      threshold: what is found with a higher score is drawn.
      columns: pairs in a row.
      side: images whose longer side is shorter are drawn larger, by a whole number.
      every: steps between evaluations.
    """

    split: str = "val"
    num: int = 16
    batch_size: int = 8
    threshold: float = 0.5
    columns: int = 4
    side: int = 192
    every: int = 0

    def __call__(
        self, task: DetectingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        return self.draw(self.find(task, variables, context), context)

    def find(
        self, task: DetectingTask, variables: Variables, context: Context
    ) -> list["Pair"]:
        """The first images, as the source has them, each with what is found in it."""
        source = source_of(context, self.split)
        first = [source[index] for index in range(min(self.num, len(source)))]
        data = replace(context.data, eval={self.split: first})
        found = detections(
            task,
            variables,
            replace(context, data=data),
            self.split,
            self.batch_size,
            as_logits,
        )
        by_id = {one.image_id: one for one in found}
        return [Pair(example, by_id[int(example["image_id"])]) for example in first]

    def draw(
        self, pairs: Sequence["Pair"], context: Context, path: Path | None = None
    ) -> dict[str, float]:
        """Into a file, by default the evaluator's; its folder is made."""
        names = names_of(source_of(context, self.split))
        pictures, counts = [], []
        for example, one in pairs:
            chosen = one.scores > self.threshold
            scale = math.ceil(self.side / max(example["image"].shape[:2]))
            pictures.append(_true_picture(example, names, scale))
            pictures.append(_found_picture(example, one, chosen, names, scale))
            counts.append((chosen.sum(), len(example["boxes"])))
        if jax.process_index() == 0:
            path = path or context.folder / f"{context.step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(pictures, 2 * self.columns, path)
        drawn, there = np.mean(counts, axis=0)
        return {"found": float(drawn), "there": float(there)}


class Pair(NamedTuple):
    """One image: the source's example, and what was found in it."""

    example: Example
    found: Detected


def _true_picture(example: Example, names: dict[int, str], scale: int) -> Picture:
    masks: Sequence[np.ndarray] = ()
    if "masks" in example:
        masks = example["masks"]
    elif "segments" in example:
        masks = [example["segments"] == 1 + row for row in range(len(example["boxes"]))]
    labels = [names.get(kind, str(kind)) for kind in example["classes"].tolist()]
    return annotated(
        example["image"], example["boxes"], example["classes"], labels, masks, scale
    )


def _found_picture(
    example: Example,
    one: Detected,
    chosen: Bool[np.ndarray, "queries"],
    names: dict[int, str],
    scale: int,
) -> Picture:
    image, (height, width) = example["image"], one.image.shape[:2]
    classes, scores = one.classes[chosen], one.scores[chosen]
    masks: Iterable[np.ndarray] = ()
    if one.masks is not None:
        logits = upsampled(np.asarray(one.masks, np.float32)[chosen], *one.padded_size)
        inside = logits[:, :height, :width] > 0
        masks = [resized(mask, *image.shape[:2]) for mask in inside]
    labels = [
        f"{names.get(kind, str(kind))} {score:.2f}"
        for kind, score in zip(classes.tolist(), scores.tolist(), strict=True)
    ]
    boxes = one.boxes_in(image.shape[:2])[chosen]
    return annotated(image, boxes, classes, labels, masks, scale)


def annotated(
    image: UInt8[np.ndarray, "height width channels"],
    boxes: Float32[np.ndarray, "objects 4"],
    classes: np.ndarray,
    labels: Sequence[str],
    masks: Iterable[Bool[np.ndarray, "height width"]] = (),
    scale: int = 1,
) -> Picture:
    """An image with masks, boxes and labels, each class in a color of its own.

    Args:
      image: of three channels, or of one.
      boxes: (x0, y0, x1, y1), in pixels.
      classes: of the objects.
      labels: what is written at the boxes.
      masks: as many, or none.
      scale: each pixel becomes a square of this side.
    """
    height, width, channels = image.shape
    canvas = np.repeat(image, 3, axis=2) if channels == 1 else image
    colors = [color_of(int(kind)) for kind in classes]
    canvas = canvas.astype(np.float32)
    for mask, color in zip(masks, colors, strict=False):
        canvas[mask] = 0.5 * canvas[mask] + 0.5 * np.array(color, np.float32)
    canvas = canvas.astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=11)
    for box, color, label in zip(boxes, colors, labels, strict=True):
        inside = np.clip(box, -1, [width, height, width, height])
        x0, y0, x1, y1 = np.rint(inside * scale).astype(int).tolist()
        right, bottom = max(x0, x1 - 1), max(y0, y1 - 1)
        draw.rectangle((x0, y0, right, bottom), outline=color, width=2)
        left, top, *end = draw.textbbox((x0, y0), label, font=font)
        up = end[1] - top + 4
        at = y0 - up if y0 >= up else max(0, y0)
        x = max(0, min(x0, width * scale - (end[0] - left) - 4))
        draw.rectangle((x, at, x + end[0] - left + 4, at + up), fill=color)
        ink = (0, 0, 0) if sum(color) > 380 else (255, 255, 255)
        draw.text((x + 2, at + 2 - (top - y0)), label, fill=ink, font=font)
    return np.asarray(picture)


def color_of(kind: int) -> tuple[int, int, int]:
    """Neighbours are far from each other on the color wheel."""
    red, green, blue = colorsys.hsv_to_rgb(kind * 0.618034 % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _save(pictures: Sequence[Picture], columns: int, path: Path) -> None:
    """In rows, on grey; each as far to the left and to the top as it can be."""
    line = 2
    height, width = (max(p.shape[axis] for p in pictures) + line for axis in (0, 1))
    rows, columns = -(-len(pictures) // columns), min(columns, len(pictures))
    canvas = np.full((rows * height + line, columns * width + line, 3), 96, np.uint8)
    for index, picture in enumerate(pictures):
        top = line + index // columns * height
        left = line + index % columns * width
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    Image.fromarray(canvas).save(path)
