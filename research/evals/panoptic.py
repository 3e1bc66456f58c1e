"""Panoptic quality of what a task finds."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from research.detection.masks import upsampled
from research.detection.panoptic import Segments, Tally, compare, merge, quality
from research.errors import UserError
from research.evals.base import Context
from research.evals.detections import (
    Detected,
    DetectingTask,
    Truth,
    as_logits,
    detections,
)
from research.tasks.base import Variables


@dataclass(frozen=True)
class PanopticQuality:
    """Makes panoptic maps of a split's images and holds them against the true ones.

    Reports `pq`, `sq` and `rq`, means over all classes, and the same over things,
    `pq_things` and so on, and over stuff, `pq_stuff` and so on; from 0 to 1.

    Attributes:
      stuff: the classes that are stuff; all others are things.
      split: of the data; its source has `segments`.
      batch_size: images at a time.
      threshold: queries with a higher score take part.
      least: segments of as many pixels or fewer are dropped.
      every: steps between evaluations.
    """

    stuff: tuple[int, ...]
    split: str = "val"
    batch_size: int = 8
    threshold: float = 0.85
    least: int = 4
    every: int = 0

    def __call__(
        self, task: DetectingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        truth = Truth(context, self.split)
        tallies: dict[int, Tally] = defaultdict(Tally)
        for one in detections(
            task, variables, context, self.split, self.batch_size, as_logits
        ):
            there = truth.whole(one.image_id)
            if "segments" not in there:
                raise UserError(
                    f"image {one.image_id} of {self.split!r} has no segments: expected "
                    "a source of panoptic maps, such as CocoPanoptic"
                )
            found, classes = panoptic_map(one, self.stuff, self.threshold, self.least)
            tally = compare(
                there["segments"], there["classes"], there["crowd"], found, classes
            )
            for kind, part in tally.items():
                tallies[kind] = tallies[kind].plus(part)
        things = set(tallies) - set(self.stuff)
        values = {}
        for name, kinds in (
            ("", set(tallies)),
            ("_things", things),
            ("_stuff", set(self.stuff)),
        ):
            parts = quality(tallies[kind] for kind in kinds)._asdict()
            values.update({metric + name: value for metric, value in parts.items()})
        return values


def panoptic_map(
    one: Detected, stuff: tuple[int, ...], threshold: float, least: int
) -> tuple[Segments, np.ndarray]:
    """The map of an image in its own size, and the classes of its segments."""
    keep = one.scores > threshold
    height, width = one.image.shape[:2]
    logits = one.required_masks()[keep].astype(np.float32)
    # The grid is over the padded image.
    masks = upsampled(logits, *one.padded_size)[:, :height, :width]
    return merge(
        one.scores[keep],
        one.classes[keep],
        masks,
        one.original_size,
        stuff,
        threshold,
        least,
    )
