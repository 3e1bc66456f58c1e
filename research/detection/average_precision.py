"""COCO's average precision, by COCO's own program.

T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", 2014, arXiv:1405.0312;
pycocotools of cocodataset/cocoapi.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from research.detection.masks import RunLengths

METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
"""The numbers in pycocotools' order.

AP is the mean over classes, over 10 overlaps from 0.50 to 0.95, and over 101 levels of
recall; AR the mean of the largest recall, with as many detections an image. Small
objects have an area below 32^2 pixels, large ones of 96^2 and more.
"""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image: those that are there, or those that were found.

    Attributes:
      boxes: (x0, y0, x1, y1), in pixels.
      classes: of each.
      scores: how sure one is of each; None for objects that are there.
      areas: in pixels, of those that are there; None for those of the boxes.
      crowd: which of those that are there are no error to find, or not to find, any
        number of times; None for none.
      masks: where masks are compared.
    """

    boxes: Float[np.ndarray, "objects 4"]
    classes: Int[np.ndarray, "objects"]
    scores: Float[np.ndarray, "objects"] | None = None
    areas: Float[np.ndarray, "objects"] | None = None
    crowd: Bool[np.ndarray, "objects"] | None = None
    masks: Sequence[RunLengths] | None = None


def average_precision(
    truth: Sequence[Objects],
    found: Sequence[Objects],
    classes: Sequence[int],
    masks: bool = False,
) -> tuple[dict[str, float], dict[int, float]]:
    """COCO's numbers for the images of `truth`, and AP of each class.

    Args:
      truth: what is there, in each image.
      found: what was found, image for image.
      classes: those that count; objects of others are left out.
      masks: whether the overlaps are those of the masks, and not those of the boxes.

    Returns:
      `METRICS`, from 0 to 1, NaN where nothing of the kind is there; and by class AP,
      NaN for a class that is not there.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        gold, ours = (_indexed(images, classes, masks) for images in (truth, found))
        evaluation = COCOeval(gold, ours, "segm" if masks else "bbox")
        evaluation.params.imgIds = list(range(1, 1 + len(truth)))
        evaluation.params.catIds = sorted(classes)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = [float("nan") if n < 0 else float(n) for n in evaluation.stats]
    # Overlaps, levels of recall, classes, all areas, 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = {
        kind: float(part.mean())
        if (part := precision[:, :, row]).min() >= 0
        else float("nan")
        for row, kind in enumerate(sorted(classes))
    }
    return dict(zip(METRICS, numbers, strict=True)), by_class


def _indexed(images: Sequence[Objects], classes: Sequence[int], masks: bool) -> COCO:
    entries = []
    for number, objects in enumerate(images, start=1):
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        boxes = np.concatenate([objects.boxes[:, :2], sides], axis=1).tolist()
        areas = sides.prod(axis=1) if objects.areas is None else objects.areas
        crowd = objects.crowd
        for row, kind in enumerate(objects.classes.tolist()):
            entry = {
                # From 1: a match with number 0 counts as none.
                "id": len(entries) + 1,
                "image_id": number,
                "category_id": kind,
                "bbox": boxes[row],
                "area": float(areas[row]),
                "iscrowd": 0 if crowd is None else int(crowd[row]),
            }
            if objects.scores is not None:
                entry["score"] = float(objects.scores[row])
            if masks and objects.masks is not None:
                runs: Any = objects.masks[row]
                entry["segmentation"] = runs
                if objects.areas is None:
                    entry["area"] = float(rle.area(runs))
            entries.append(entry)
    numbers = range(1, 1 + len(images))
    dataset: Any = {
        "images": [{"id": number, "height": 0, "width": 0} for number in numbers],
        "categories": [{"id": kind} for kind in classes],
        "annotations": entries,
    }
    index = COCO()
    index.dataset = dataset
    index.createIndex()
    return index
