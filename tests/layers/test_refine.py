from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.conv import mean_pool
from research.layers.norms import InstanceNormPlus
from research.layers.refine import (
    ChainedResidualPooling,
    MultiScaleFusion,
    PreActivationBlock,
    RefineBlock,
    ResidualConvUnit,
    average_pool,
    max_pool,
    resize,
)
from tests.layers import slow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6, 4, 4))
HALF = RNG.normal(size=(3, 3, 2, 6))
LEVEL = jnp.array([1, 0, 1])
LEVEL_NORM = partial(InstanceNormPlus, num_levels=2)


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def norm(params, x, level=LEVEL):
    """Our own norm, which has its test elsewhere; without parameters, none."""
    if params is None:
        return x
    module = InstanceNormPlus(
        len(params["scale"]) if params["scale"].ndim > 1 else None
    )
    return np.float64(slow.apply(module, params, jnp.asarray(x), level))


def conv(params, x, dilation=1):
    """Dilated by zeros between the kernel's elements."""
    kernel = np.float64(params["kernel"])
    size = dilation * (len(kernel) - 1) + 1
    spread = np.zeros((size, size, *kernel.shape[2:]))
    spread[::dilation, ::dilation] = kernel
    return slow.conv({"kernel": spread, "bias": params.get("bias", 0.0)}, x)


def pool(reduce, x):
    return np.float64(reduce(jnp.asarray(x)))


def check(module, params, x, expected):
    ours = slow.apply(module, params, jax.tree.map(jnp.asarray, x), LEVEL)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_pools(pool):
    expected = np.empty_like(X)
    for row in range(6):
        for column in range(4):
            window = X[:, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            if pool is max_pool:
                expected[:, row, column] = window.max((1, 2))
            else:
                expected[:, row, column] = window.sum((1, 2)) / 25
    np.testing.assert_allclose(pool(jnp.asarray(X)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(11, 4), (3, 7), (1, 1), (6, 4)])
def test_resize(size):
    expected = np.empty((3, *size, 4))
    for new_row in range(size[0]):
        for new_column in range(size[1]):
            # Where corners stay, the last pixel of a side is the last of the other.
            row = new_row * 5 / max(size[0] - 1, 1)
            column = new_column * 3 / max(size[1] - 1, 1)
            top, left = int(row), int(column)
            below, right = min(top + 1, 5), min(left + 1, 3)
            upper = (1 - row + top) * X[:, top] + (row - top) * X[:, below]
            expected[:, new_row, new_column] = (1 - column + left) * upper[:, left] + (
                column - left
            ) * upper[:, right]
    ours = resize(jnp.asarray(X), *size)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_resize_of_one_pixel():
    ours = resize(jnp.asarray(X[:, :1, :1]), 3, 2)
    np.testing.assert_allclose(ours, X[:, :1, :1] * np.ones((1, 3, 2, 1)), rtol=1e-6)


def test_convolutions_start_as_those_of_pytorch():
    module = PreActivationBlock(64, opens_stage=True)
    params = jax.eval_shape(module.init, slow.key(0), jnp.asarray(X), LEVEL)["params"]
    assert params["skip"]["kernel"].shape == (1, 1, 4, 64)
    params = slow.jit(module.init)(slow.key(0), jnp.asarray(X), LEVEL)["params"]
    for name, fan_in in (("conv2", 9 * 4), ("skip", 4)):
        for leaf in jax.tree.leaves(params[name]):
            largest = float(abs(leaf).max())
            assert 0.9 < largest * fan_in**0.5 <= 1


@pytest.mark.parametrize("norm_slot", [InstanceNormPlus, LEVEL_NORM])
@pytest.mark.parametrize(
    ("channels", "opens_stage", "dilation"),
    [(4, False, 1), (4, False, 2), (6, True, 1), (4, True, 1), (6, True, 2)],
)
def test_pre_activation_block(channels, opens_stage, dilation, norm_slot):
    block = PreActivationBlock(channels, opens_stage, dilation, norm_slot)
    params = slow.random_params(block, jnp.asarray(X), LEVEL)
    h = conv(params["conv1"], elu(norm(params["norm1"], X)), dilation)
    h = conv(params["conv2"], elu(norm(params["norm2"], h)), dilation)
    skip = conv(params["skip"], X, dilation) if opens_stage else X
    if opens_stage and dilation == 1:
        skip, h = pool(mean_pool, skip), pool(mean_pool, h)
    check(block, params, X, skip + h)
    assert len(params) == 4 + opens_stage


def test_only_the_first_block_of_a_stage_changes_channels():
    block = PreActivationBlock(6)
    with pytest.raises(UserError, match="6 channels .* 4"):
        jax.eval_shape(block.init, slow.key(0), jnp.asarray(X), LEVEL)


def residual_conv_unit(params, x):
    h = conv(params["conv1"], elu(norm(params.get("norm1"), x)))
    return x + conv(params["conv2"], elu(norm(params.get("norm2"), h)))


def fusion(params, xs):
    total = 0
    for i, x in enumerate(xs):
        h = conv(params[f"conv_{i}"], norm(params.get(f"norm_{i}"), x))
        total += np.float64(resize(jnp.asarray(h), *xs[0].shape[1:3]))
    return total


def pooling(params, x, reduce):
    x = link = elu(x)
    for i in range(2):
        link = pool(reduce, norm(params.get(f"norm_{i}"), link))
        link = conv(params[f"conv_{i}"], link)
        x = x + link
    return x


@pytest.mark.parametrize("norm_slot", [None, LEVEL_NORM])
def test_residual_conv_unit(norm_slot):
    unit = ResidualConvUnit(norm_slot)
    params = slow.random_params(unit, jnp.asarray(X), LEVEL)
    assert params["conv1"].keys() == {"kernel"}
    check(unit, params, X, residual_conv_unit(params, X))


@pytest.mark.parametrize("norm_slot", [None, LEVEL_NORM])
def test_multi_scale_fusion(norm_slot):
    module = MultiScaleFusion(5, norm_slot)
    xs = [X, HALF]
    params = slow.random_params(module, [jnp.asarray(x) for x in xs], LEVEL)
    check(module, params, xs, fusion(params, xs))


@pytest.mark.parametrize("reduce", [max_pool, average_pool])
@pytest.mark.parametrize("norm_slot", [None, LEVEL_NORM])
def test_chained_residual_pooling(norm_slot, reduce):
    module = ChainedResidualPooling(reduce, norm_slot)
    params = slow.random_params(module, jnp.asarray(X), LEVEL)
    check(module, params, X, pooling(params, X, reduce))


@pytest.mark.parametrize(("xs", "num_out_units"), [([X, HALF], 3), ([X], 1)])
def test_refine_block(xs, num_out_units):
    block = RefineBlock(4, num_out_units, average_pool, LEVEL_NORM)
    params = slow.random_params(block, [jnp.asarray(x) for x in xs], LEVEL)
    params = jax.tree.map(lambda leaf: leaf / 2, params)
    adapted = []
    for i, x in enumerate(xs):
        for j in range(2):
            x = residual_conv_unit(params[f"adapt_{i}_{j}"], x)
        adapted.append(x)
    h = fusion(params["fusion"], adapted) if len(xs) > 1 else adapted[0]
    h = pooling(params["pooling"], h, average_pool)
    for i in range(num_out_units):
        h = residual_conv_unit(params[f"out_{i}"], h)
    check(block, params, xs, h)
    assert ("fusion" in params) == (len(xs) > 1)
    assert f"out_{num_out_units}" not in params
