"""COCO's average precision of what a task finds."""

from dataclasses import dataclass

from research.data.sources import Example
from research.detection.average_precision import Objects, average_precision
from research.detection.masks import RunLengths, encode, resized
from research.errors import UserError
from research.evals.base import Context
from research.evals.detections import (
    Detected,
    DetectingTask,
    Truth,
    as_pixels,
    detections,
)
from research.tasks.base import Variables


@dataclass(frozen=True)
class CocoAP:
    """Finds objects in a split's images and scores them with pycocotools.

    All queries of an image are scored, whatever they say; DETR needs no suppression of
    doubles. The objects are those of the source, in the image's own size, crowds
    included.

    Reports `research.detection.average_precision.METRICS`: `ap`, `ap50`, `ap75`, by
    size `ap_small`, `ap_medium`, `ap_large`, and the recall `ar1`, `ar10`, `ar100`,
    `ar_small` and so on, each from 0 to 1; with masks also `mask_ap` and so on.

    Attributes:
      split: of the data.
      batch_size: images at a time. Padding enters what DETR finds: its authors evaluate
        at two images a GPU, and with a dilated backbone at one.
      masks: whether the masks are scored too.
      classes: those that are scored; by default all that the source names.
      by_class: whether to report AP of each class, as `ap/NAME`.
      every: steps between evaluations.
    """

    split: str = "val"
    batch_size: int = 8
    masks: bool = False
    classes: tuple[int, ...] = ()
    by_class: bool = False
    every: int = 0

    def __call__(
        self, task: DetectingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        truth = Truth(context, self.split)
        there, found = [], []
        for one in detections(
            task,
            variables,
            context,
            self.split,
            self.batch_size,
            as_pixels if self.masks else None,
        ):
            whole = truth.whole(one.image_id) if self.masks else None
            there.append(_objects(truth.of(one.image_id), whole))
            found.append(
                Objects(
                    boxes=one.boxes_in(one.original_size),
                    classes=one.classes,
                    scores=one.scores,
                    masks=_masks_of(one) if self.masks else None,
                )
            )
        values = {}
        for prefix, masks in (("", False), ("mask_", True))[: 1 + self.masks]:
            metrics, by_class = average_precision(
                there, found, self.classes or truth.classes, masks
            )
            values.update({prefix + name: value for name, value in metrics.items()})
            if self.by_class:
                named = {truth.names.get(k, str(k)): v for k, v in by_class.items()}
                values.update({f"{prefix}ap/{n}": value for n, value in named.items()})
        return values


def _objects(annotation: Example, whole: Example | None) -> Objects:
    return Objects(
        boxes=annotation["boxes"],
        classes=annotation["classes"],
        areas=annotation.get("areas"),
        crowd=annotation["crowd"],
        masks=None if whole is None else _true_masks(whole),
    )


def _true_masks(example: Example) -> list[RunLengths]:
    if "masks" in example:
        return [encode(mask) for mask in example["masks"]]
    if "segments" in example:
        rows = range(1, 1 + len(example["boxes"]))
        return [encode(example["segments"] == row) for row in rows]
    raise UserError(
        f"image {example['image_id']} has no masks: expected a source with masks, such "
        "as CocoInstances(masks=True), or an evaluation without"
    )


def _masks_of(one: Detected) -> list[RunLengths]:
    """Without the padding, in the image's own size."""
    height, width = one.image.shape[:2]
    inside = one.required_masks()[:, :height, :width]
    return [encode(resized(mask, *one.original_size)) for mask in inside]
