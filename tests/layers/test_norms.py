import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.norms import GroupNorm
from tests.layers import slow


@pytest.mark.parametrize(
    ("channels", "num_groups"), [(8, 2), (12, 3), (128, 32), (192, 32)]
)
def test_slow_formula(channels, num_groups):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 3, 5, channels))
    params = slow.random_params(GroupNorm(), jnp.asarray(x))
    ours = slow.apply(GroupNorm(), params, jnp.asarray(x))
    np.testing.assert_allclose(
        ours, slow.group_norm(params, x, num_groups), rtol=1e-4, atol=1e-5
    )


def test_constant_images_become_the_bias():
    # Rounding makes the variance of some of them negative.
    x = jnp.linspace(1.0, 1e3, 64)[:, None, None, None] * jnp.ones((64, 3, 3, 8))
    params = {"scale": jnp.ones(8), "bias": jnp.arange(8.0)}
    y = slow.apply(GroupNorm(), params, x)
    expected = jnp.broadcast_to(jnp.arange(8.0), x.shape)
    np.testing.assert_allclose(y, expected, atol=0.5)


def test_shift_and_scale_of_a_group_do_not_matter():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    factor = jnp.repeat(jnp.array([3.0, 0.5]), 4)[None, None, None]
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    y, rescaled = (
        slow.apply(GroupNorm(), params, value) for value in (x, factor * x + 1)
    )
    np.testing.assert_allclose(y, rescaled, atol=1e-4)


def test_moments_are_float32_in_bfloat16():
    # Squares around 900 are 4 apart in bfloat16: their mean would miss the variance.
    noise = jax.random.normal(jax.random.key(0), (1, 16, 16, 8))
    x = (30 + 2 * noise).astype(jnp.bfloat16)
    norm = GroupNorm(dtype="bfloat16")
    y, variables = slow.jit(norm.init_with_output)(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = slow.group_norm(variables["params"], np.float64(x), 2)
    np.testing.assert_allclose(np.float64(y), exact, atol=0.02)


@pytest.mark.parametrize("channels", [3, 14, 150])
def test_unequal_groups_are_refused(channels):
    with pytest.raises(UserError, match=f"{channels} channels"):
        GroupNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, channels)))
