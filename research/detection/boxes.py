"""Rectangles: corners, areas, and how much two of them are the same.

All functions are of arrays whose last axis holds one box. Two arrays of boxes are
compared one by one, axes of length one against all: `iou(a[:, None], b[None])` is of
every pair.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Boxes = Float[Array, "*#batch 4"]


def to_corners(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """(center x, center y, width, height) to (x0, y0, x1, y1)."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - size / 2, center + size / 2], axis=-1)


def to_centers(corners: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """(x0, y0, x1, y1) to (center x, center y, width, height)."""
    low, high = corners[..., :2], corners[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(corners: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Zero where the corners are not in order."""
    return jnp.prod(jnp.maximum(corners[..., 2:] - corners[..., :2], 0), axis=-1)


def iou(first: Boxes, second: Boxes) -> Float[Array, "*batch"]:
    """Area in common over the area that either covers, of corners; from 0 to 1.

    Zero for two boxes without area.
    """
    common, union = _overlap(first, second)
    return _ratio(common, union)


def generalized_iou(first: Boxes, second: Boxes) -> Float[Array, "*batch"]:
    """IoU less the part of the smallest box around both that neither covers.

    Rezatofighi et al. 2019, arXiv:1902.09630, Algorithm 1, of corners; from -1, for
    boxes that are far from each other for their sizes, to 1.
    """
    common, union = _overlap(first, second)
    low = jnp.minimum(first[..., :2], second[..., :2])
    high = jnp.maximum(first[..., 2:], second[..., 2:])
    hull = area(jnp.concatenate([low, high], axis=-1))
    return _ratio(common, union) - _ratio(hull - union, hull)


def _overlap(first: Array, second: Array) -> tuple[Array, Array]:
    """The areas that both cover, and that either does."""
    low = jnp.maximum(first[..., :2], second[..., :2])
    high = jnp.minimum(first[..., 2:], second[..., 2:])
    common = area(jnp.concatenate([low, high], axis=-1))
    return common, area(first) + area(second) - common


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole; zero, and so is its gradient, for a whole that is zero."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
