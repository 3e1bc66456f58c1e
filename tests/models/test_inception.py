import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.inception import InceptionV3, average_pool, resize


def test_parameter_count():
    """Keras gives 23.9 million; torchvision's 27,161,264 with 1000 classes are these
    without 8 * 2049 of the head, and with 3,326,696 of the auxiliary classifier."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    variables = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert count == 23_850_960
    assert count - 8 * 2049 + 3_326_696 == 27_161_264
    statistics = jax.tree.leaves(variables["batch_stats"])
    assert len(statistics) == 2 * 94
    assert sum(math.prod(leaf.shape) for leaf in statistics) == 2 * 17_216


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 300, 200, 3)])
def test_outputs(shape):
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    outputs, _ = jax.eval_shape(
        InceptionV3().init_with_output, jax.random.key(0), images
    )
    assert outputs["features"].shape == (shape[0], 2048)
    assert outputs["logits"].shape == (shape[0], 1008)
    assert outputs["unbiased_logits"].shape == (shape[0], 1008)


def test_resize_aligns_corners_of_pixels():
    """Two pixels to six: output i reads position i/3, and past the end the last."""
    x = jnp.array([[0.0, 3.0], [6.0, 9.0]])[None, :, :, None]
    y = resize(x, 6)[0, :, :, 0]
    np.testing.assert_allclose(y[0], [0, 1, 2, 3, 3, 3], atol=1e-6)
    np.testing.assert_allclose(y[:, 0], [0, 2, 4, 6, 6, 6], atol=1e-6)


def test_resize_keeps_and_skips_pixels():
    x = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
    np.testing.assert_array_equal(resize(x, 8), x)
    np.testing.assert_array_equal(resize(x, 4), x[:, ::2, ::2])


def test_average_pool_does_not_count_padding():
    np.testing.assert_allclose(average_pool(jnp.ones((1, 4, 4, 2))), 1, rtol=1e-6)
