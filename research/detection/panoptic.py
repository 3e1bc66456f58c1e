"""Panoptic maps: made of masks, and judged.

A map gives every pixel to one segment or to none. Segments are countable things, each
its own, or stuff such as sky, of which a class has one segment.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32
from PIL import Image
from PIL.Image import Resampling

Segments = Int32[np.ndarray, "height width"]
"""i + 1 where segment i is, 0 where none is."""


def merge(
    scores: Float32[np.ndarray, "queries"],
    classes: Int[np.ndarray, "queries"],
    masks: Float32[np.ndarray, "queries height width"],
    size: tuple[int, int],
    stuff: Collection[int],
    threshold: float = 0.85,
    least: int = 4,
) -> tuple[Int32[np.ndarray, "map_height map_width"], Int32[np.ndarray, "segments"]]:
    """The panoptic map of what DETR found, and the classes of its segments.

    Each pixel goes to the surest mask of those with a score above the threshold; the
    segments of one class of stuff are made one; those of few pixels are dropped, and
    their pixels given to the surest of the others, until there are none. A mask that
    was made one with another has no pixels left, and is dropped so, too.

    Source: N. Carion et al. 2020, arXiv:2005.12872, section 4.4; PostProcessPanoptic in
    models/segmentation.py of facebookresearch/detr.

    Args:
      scores: of the best class that is an object.
      classes: that class.
      masks: logits at the pixels of the image that the network saw.
      size: height and width of the map.
      stuff: classes of which an image has one segment.
      threshold: scores above it are objects.
      least: segments of as many pixels of the map or fewer are dropped.
    """
    keep = scores > threshold
    classes, masks = classes[keep], masks[keep]
    owner = _owners(masks)
    for kind in set(classes.tolist()) & set(stuff):
        first, *others = np.flatnonzero(classes == kind)
        owner[np.isin(owner, others)] = first
    while True:
        if not len(classes):
            return np.zeros(size, np.int32), classes.astype(np.int32)
        segments = _scaled(owner, size)
        areas = np.bincount(segments.ravel(), minlength=len(classes))
        large = areas > least
        if large.all():
            return segments + 1, classes.astype(np.int32)
        classes, masks = classes[large], masks[large]
        owner = _owners(masks)


def _owners(masks: Float32[np.ndarray, "num height width"]) -> Segments:
    if not len(masks):
        return np.zeros(masks.shape[1:], np.int32)
    return masks.argmax(axis=0).astype(np.int32)


def _scaled(
    owner: Segments, size: tuple[int, int]
) -> Int32[np.ndarray, "new_height new_width"]:
    """Each pixel from the one at its center."""
    height, width = size
    image = Image.fromarray(owner).resize((width, height), Resampling.NEAREST)
    return np.asarray(image, np.int32)


# Panoptic quality


class Tally(NamedTuple):
    """What was found of one class."""

    overlap: float = 0.0
    """Intersection over union, summed over the segments that were found."""

    found: int = 0
    missed: int = 0
    wrong: int = 0

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(
            self.overlap + other.overlap,
            self.found + other.found,
            self.missed + other.missed,
            self.wrong + other.wrong,
        )


class Quality(NamedTuple):
    """PQ = SQ * RQ of each class, averaged over those of which there is something.

    SQ is the mean overlap of the segments that were found; RQ is their number beside
    the mean of how many there are and how many were told.
    """

    pq: float
    sq: float
    rq: float


def compare(
    truth: Segments,
    truth_classes: Int[np.ndarray, "true_segments"],
    crowd: Bool[np.ndarray, "true_segments"],
    found: Segments,
    found_classes: Int[np.ndarray, "found_segments"],
) -> dict[int, Tally]:
    """What was found in one image, by class.

    A segment is found where one of its class overlaps it by more than a half. Pixels
    that belong to nothing in `truth` count for no union; a segment of which more than a
    half lies there, or in crowds of its class, is not wrong.

    Source: A. Kirillov et al., "Panoptic Segmentation", 2019, arXiv:1801.00868, section
    4; pq_compute_single_core in panopticapi/evaluation.py of cocodataset/panopticapi.

    Differs: of several crowds of one class panopticapi regards the last.
    """
    shape = (1 + len(truth_classes), 1 + len(found_classes))
    both = np.bincount(
        truth.astype(np.int64).ravel() * shape[1] + found.ravel(),
        minlength=shape[0] * shape[1],
    ).reshape(shape)
    shared, nowhere = both[1:, 1:], both[0, 1:]
    areas = both[:, 1:].sum(axis=0)
    union = both[1:].sum(axis=1)[:, None] + areas - shared - nowhere
    overlaps = shared / np.maximum(union, 1)
    alike = truth_classes[:, None] == found_classes
    match = alike & ~crowd[:, None] & (overlaps > 0.5)
    ignored = nowhere + (shared * (alike & crowd[:, None])).sum(axis=0)
    missed = ~match.any(axis=1) & ~crowd
    wrong = ~match.any(axis=0) & (2 * ignored <= areas)
    return {
        kind: Tally(
            float(overlaps[match & (truth_classes == kind)[:, None]].sum()),
            int(match[truth_classes == kind].sum()),
            int(missed[truth_classes == kind].sum()),
            int(wrong[found_classes == kind].sum()),
        )
        for kind in {*truth_classes.tolist(), *found_classes.tolist()}
    }


def quality(tallies: Iterable[Tally]) -> Quality:
    """The means over classes; NaN where there is nothing of any."""
    parts = []
    for tally in tallies:
        number = tally.found + 0.5 * (tally.missed + tally.wrong)
        if number:
            overlap = tally.overlap / max(tally.found, 1)
            parts.append((tally.overlap / number, overlap, tally.found / number))
    means = np.mean(parts, axis=0) if parts else np.full(3, np.nan)
    return Quality(*map(float, means))
