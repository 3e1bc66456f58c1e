import jax.numpy as jnp
import numpy as np

from research.layers.conv import mean_pool, nearest_upsample

IMAGE = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)


def test_mean_pool():
    pooled = np.asarray(mean_pool(jnp.asarray(IMAGE)))
    assert pooled.shape == (2, 2, 3, 3)
    for row in range(2):
        for column in range(3):
            block = IMAGE[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_allclose(pooled[:, row, column], block.mean((1, 2)))


def test_nearest_upsample():
    large = np.asarray(nearest_upsample(jnp.asarray(IMAGE)))
    np.testing.assert_array_equal(large, IMAGE.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_array_equal(mean_pool(jnp.asarray(large)), IMAGE)
