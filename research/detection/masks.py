"""Regions of an image as arrays on the host: painted, measured, scaled."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Shaped
from pycocotools import mask as rle
from scipy import ndimage


def boxes_of(
    segments: Int32[np.ndarray, "height width"], num: int
) -> Float32[np.ndarray, "num 4"]:
    """The boxes (x0, y0, x1, y1) around segments 1 to `num`, in pixels.

    The last row and column of a segment are inside its box: one pixel has area 1. A
    segment without pixels has a box of zeros.
    """
    boxes = np.zeros((num, 4), np.float32)
    for row, found in enumerate(ndimage.find_objects(segments, num)):
        if found is not None:
            y, x = found
            boxes[row] = x.start, y.start, x.stop, y.stop
    return boxes


def areas_of(
    segments: Int32[np.ndarray, "height width"], num: int
) -> Float32[np.ndarray, "num"]:
    """The pixels of segments 1 to `num`."""
    counts = np.bincount(segments.ravel(), minlength=num + 1)
    return counts[1 : num + 1].astype(np.float32)


def paint(
    masks: Bool[np.ndarray, "num height width"],
) -> Int32[np.ndarray, "height width"]:
    """One map of masks that may overlap: i + 1 where mask i is, 0 where none is.

    Smaller masks lie over larger ones: a tie over its wearer, a cup over the table.
    """
    segments = np.zeros(masks.shape[1:], np.int32)
    for row in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        segments[masks[row]] = row + 1
    return segments


def renumbered(
    segments: Int32[np.ndarray, "height width"], keep: Bool[np.ndarray, "num"]
) -> Int32[np.ndarray, "height width"]:
    """The map after the rows that are not kept have been taken out."""
    numbers = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)])
    return numbers.astype(np.int32)[segments]


def resized(
    pixels: Shaped[np.ndarray, "height width"], height: int, width: int
) -> Shaped[np.ndarray, "new_height new_width"]:
    """The map in another size, each pixel the one that lies where its corner does."""
    rows = np.arange(height) * pixels.shape[0] // height
    columns = np.arange(width) * pixels.shape[1] // width
    return pixels[rows[:, None], columns]


def upsampled(
    masks: Float32[np.ndarray, "num rows columns"], height: int, width: int
) -> Float32[np.ndarray, "num height width"]:
    """Bilinear between the centers of pixels; the outermost reach to the border."""

    def places(number: int, given: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The two pixels beside each, and how near the second is."""
        at = (np.arange(number) + 0.5) * given / number - 0.5
        at = at.clip(0, given - 1)
        before = np.floor(at).astype(np.int64)
        after = np.minimum(before + 1, given - 1)
        return before, after, (at - before).astype(np.float32)

    above, below, share = places(height, masks.shape[1])
    share = share[:, None]
    masks = masks[:, above] * (1 - share) + masks[:, below] * share
    left, right, share = places(width, masks.shape[2])
    return masks[..., left] * (1 - share) + masks[..., right] * share


# COCO's run lengths

RunLengths = dict[str, Any]
"""A mask: `size`, [height, width], and compressed `counts`."""


def decode(
    segmentation: Any, height: int, width: int
) -> Bool[np.ndarray, "height width"]:
    """The pixels of a `segmentation` of COCO's JSON.

    Args:
      segmentation: polygons, each a list [x, y, x, y, ...] in pixels; or run lengths
        by columns, {"size": [height, width], "counts": ...}, plain or compressed.
      height: of the image.
      width: of the image.

    Raises:
      ValueError: it is none of these, or of another size.
    """
    if isinstance(segmentation, list):
        # Four numbers would be taken for a box, and fewer than six enclose nothing.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if any(len(polygon) % 2 for polygon in polygons):
            raise ValueError("a polygon with an odd number of coordinates")
        if not polygons:
            return np.zeros((height, width), bool)
        segmentation = rle.merge(rle.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError(f"{segmentation!r:.60}, neither polygons nor run lengths")
    size, counts = segmentation.get("size"), segmentation["counts"]
    if list(size or ()) != [height, width]:
        raise ValueError(f"run lengths of size {size}, not {[height, width]}")
    if not isinstance(counts, list):
        counts = _counts(counts)
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return values.repeat(counts).reshape(width, height).T


def _counts(text: str | bytes) -> list[int]:
    """The run lengths of a compressed text, as rleFrString of cocoapi's maskApi.c.

    Six bits a character, the sixth of which says that more follow; five of them, the
    lowest first, make a number with a sign. From the fourth on a number is added to the
    one before the last.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text.encode() if isinstance(text, str) else text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    return counts


def encode(mask: Bool[np.ndarray, "height width"]) -> RunLengths:
    """A mask as COCO's compressed run lengths."""
    return dict(rle.encode(np.asfortranarray(mask, np.uint8)))
