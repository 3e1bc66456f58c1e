import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.conv import (
    fir_blur,
    fir_downsample,
    fir_upsample,
    mean_pool,
    nearest_resize,
    nearest_upsample,
)
from tests.layers import slow

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


def test_nearest_resize():
    image = jnp.asarray(IMAGE)
    large = nearest_resize(image, 8, 12)
    np.testing.assert_array_equal(large, nearest_upsample(image))
    # Rows 0, 4/3 and 8/3; columns 0, 1.2, 2.4, 3.6 and 4.8.
    small = nearest_resize(image, 3, 5)
    np.testing.assert_array_equal(small, IMAGE[:, [0, 1, 2]][:, :, [0, 1, 2, 3, 4]])
    assert nearest_resize(image > 9, 1, 1).dtype == bool


@pytest.mark.parametrize(
    ("fir", "gain", "up", "padding", "down"),
    [
        pytest.param(fir_downsample, 1, 1, (1, 1), 2, id="downsample"),
        pytest.param(fir_upsample, 2, 2, (2, 1), 1, id="upsample"),
        pytest.param(fir_blur, 1, 1, (2, 2), 1, id="blur"),
    ],
)
@pytest.mark.parametrize("taps", [(1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 4.0, 3.0)])
def test_fir_slow_formula(fir, gain, up, padding, down, taps):
    def along(x):
        stuffed = np.zeros(up * len(x))
        stuffed[::up] = x
        padded = np.pad(stuffed, padding)
        return np.convolve(padded, gain * np.array(taps) / sum(taps), "valid")[::down]

    expected = np.apply_along_axis(along, 2, np.apply_along_axis(along, 1, IMAGE))
    ours = slow.jit(lambda x: fir(x, taps))(jnp.asarray(IMAGE))
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)
    if taps == (1.0, 3.0, 3.0, 1.0):
        np.testing.assert_array_equal(slow.jit(fir)(jnp.asarray(IMAGE)), ours)


def test_fir_of_two_equal_taps_is_a_box():
    image = jnp.asarray(IMAGE)
    np.testing.assert_allclose(fir_downsample(image, (1.0, 1.0)), mean_pool(image))
    np.testing.assert_allclose(fir_upsample(image, (1.0, 1.0)), nearest_upsample(image))


def test_fir_keeps_constants_inside():
    ones = jnp.ones((1, 8, 8, 1), jnp.bfloat16)
    for fir in (fir_downsample, fir_upsample, fir_blur):
        y = fir(ones)
        assert y.dtype == jnp.bfloat16
        assert (y[:, 2:-2, 2:-2] == 1).all()
        assert (y[:, 0] < 1).all()
