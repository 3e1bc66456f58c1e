import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.blocks import BigGANBlock
from research.layers.conv import mean_pool, nearest_upsample
from tests.layers import slow

RNG = np.random.default_rng(0)
X, TIME = RNG.normal(size=(2, 4, 6, 8)), RNG.normal(size=(2, 5))
ARGS = (jnp.asarray(X), jnp.asarray(TIME))


@pytest.mark.parametrize(
    ("channels", "resample"),
    [(8, None), (12, None), (8, mean_pool), (12, nearest_upsample)],
)
def test_slow_formula(channels, resample):
    block = BigGANBlock(channels, resample=resample)
    params = slow.random_params(block, *ARGS, False)
    ours = slow.apply(block, params, *ARGS, False)

    def resize(x):
        return x if resample is None else np.float64(resample(jnp.asarray(x)))

    h = resize(slow.swish(slow.group_norm(params["norm1"], X, 2)))
    h = slow.conv(params["conv1"], h)
    h += slow.dense(params["time"], slow.swish(TIME))[:, None, None]
    h = slow.swish(slow.group_norm(params["norm2"], h, channels // 4))
    h = slow.conv(params["conv2"], h)
    skip = resize(X)
    if resample is not None or channels != 8:
        skip = slow.conv(params["skip"], skip)
    np.testing.assert_allclose(ours, (skip + h) / 2**0.5, rtol=1e-4, atol=1e-4)
    assert ("skip" in params) == (resample is not None or channels != 8)


def test_starts_as_the_rescaled_input():
    init = slow.jit(BigGANBlock(8).init_with_output, static_argnums=3)
    y, _ = init(slow.key(0), *ARGS, False)
    np.testing.assert_allclose(y, X / 2**0.5, atol=1e-4)


def test_dropout_is_before_the_second_convolution():
    block = BigGANBlock(8, dropout_rate=0.5)
    params = slow.random_params(block, *ARGS, False)

    def apply(params, seed):
        return slow.apply(block, params, *ARGS, True, dropout=slow.key(seed))

    assert (apply(params, 0) != apply(params, 1)).any()
    # Without the second convolution's kernel nothing that was dropped comes through.
    params["conv2"]["kernel"] *= 0
    np.testing.assert_array_equal(apply(params, 0), apply(params, 1))
