import jax
import jax.numpy as jnp
import numpy as np

from research.detection.boxes import (
    area,
    generalized_iou,
    iou,
    to_centers,
    to_corners,
)
from tests.layers import slow

# Equal; a quarter in common; apart, in a hull of 3x3; one inside the other; a line.
FIRST = jnp.array(
    [[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 4, 4], [1, 1, 1, 3]]
)
SECOND = jnp.array(
    [[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 3, 3], [1, 1, 2, 3], [1, 1, 1, 3]]
)


def test_iou_by_hand():
    expected = [1, 1 / 7, 0, 2 / 16, 0]
    np.testing.assert_allclose(iou(FIRST, SECOND), expected, rtol=1e-6)
    expected = [1, 1 / 7 - 2 / 9, -7 / 9, 2 / 16, 0]
    np.testing.assert_allclose(generalized_iou(FIRST, SECOND), expected, rtol=1e-6)
    np.testing.assert_array_equal(area(FIRST), [4, 4, 1, 16, 0])


def test_random_boxes_by_counting_pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (2, 40, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 9, (2, 40, 2))], axis=-1)

    def covered(box):
        pixels = np.zeros((24, 24), bool)
        pixels[box[1] : box[3], box[0] : box[2]] = True
        return pixels

    expected = np.empty((40, 40, 2))
    for i, a in enumerate(boxes[0]):
        for j, b in enumerate(boxes[1]):
            common = (covered(a) & covered(b)).sum()
            union = (covered(a) | covered(b)).sum()
            low, high = np.minimum(a, b)[:2], np.maximum(a, b)[2:]
            hull = covered(np.concatenate([low, high])).sum()
            expected[i, j] = common / union, common / union - (hull - union) / hull
    first, second = jnp.asarray(boxes, jnp.float32)
    pairs = (first[:, None], second[None])
    np.testing.assert_allclose(iou(*pairs), expected[..., 0], atol=1e-6)
    found = generalized_iou(*pairs)
    np.testing.assert_allclose(found, expected[..., 1], atol=1e-6)
    assert -1 < found.min() < 0 < found.max() < 1


def test_centers_and_corners():
    np.testing.assert_array_equal(to_centers(SECOND)[1], [2, 2, 2, 2])
    np.testing.assert_array_equal(to_corners(to_centers(SECOND)), SECOND)


def test_gradients_are_finite_without_area():
    boxes = jnp.zeros((3, 4)).at[1].set(1.0)
    grad = slow.jit(jax.grad(lambda b: generalized_iou(b, boxes).sum()))
    assert jnp.isfinite(grad(boxes)).all()
    assert jnp.isfinite(grad(FIRST[2:])).all()
