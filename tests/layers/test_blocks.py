import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.blocks import (
    BigGANBlock,
    InputSkip,
    NearestConv,
    ResidualOutput,
    ResidualPyramid,
    StridedConv,
    concatenate,
    ddpm_block,
)
from research.layers.conv import (
    fir_blur,
    fir_downsample,
    fir_upsample,
    mean_pool,
    nearest_upsample,
)
from tests.layers import slow

RNG = np.random.default_rng(0)
X, TIME = RNG.normal(size=(2, 4, 6, 8)), RNG.normal(size=(2, 5))
ARGS = (jnp.asarray(X), jnp.asarray(TIME))


@pytest.mark.parametrize(
    ("channels", "resample"),
    [(8, None), (12, None), (8, mean_pool), (12, nearest_upsample), (8, fir_upsample)],
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


@pytest.mark.parametrize("channels", [8, 12])
def test_ddpm_block(channels):
    block = ddpm_block(channels)
    params = slow.random_params(block, *ARGS, False)
    ours = slow.apply(block, params, *ARGS, False)
    h = slow.conv(params["conv1"], slow.swish(slow.group_norm(params["norm1"], X, 2)))
    h += slow.dense(params["time"], slow.swish(TIME))[:, None, None]
    h = slow.swish(slow.group_norm(params["norm2"], h, channels // 4))
    skip = X if channels == 8 else slow.dense(params["skip"], X)
    expected = skip + slow.conv(params["conv2"], h)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_ddpm_block_starts_as_a_tenth_of_the_variance():
    block = ddpm_block(256, dropout_rate=0.7)
    params = slow.jit(block.init, static_argnums=3)(slow.key(0), *ARGS, False)["params"]
    variance = params["skip"]["kernel"].var() * (8 + 256) / 2
    assert 0.08 < variance < 0.12
    assert block.dropout_rate == 0.7


def test_ddpm_changes_level_by_a_convolution():
    down = ddpm_block(12, StridedConv, name="down")
    assert isinstance(down, StridedConv) and down.name == "down"
    params = slow.random_params(down, *ARGS, False)
    ours = slow.apply(down, params, *ARGS, False)
    # Centred on odd pixels: there are no zeros above and to the left.
    expected = slow.conv(params["conv"], X)[:, 1::2, 1::2]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)

    # Centred on even pixels: there is one zero on either side.
    down = StridedConv(12, padding=(1, 1))
    ours = slow.apply(down, params, *ARGS, False)
    expected = slow.conv(params["conv"], X)[:, ::2, ::2]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)

    up = ddpm_block(12, NearestConv)
    params = slow.random_params(up, *ARGS, False)
    ours = slow.apply(up, params, *ARGS, False)
    expected = slow.conv(params["conv"], X.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


H = RNG.normal(size=(2, 2, 3, 12))


def test_residual_pyramid():
    args = jnp.asarray(X), jnp.asarray(H)
    module = ResidualPyramid(12)
    params = slow.random_params(module, *args)
    pyramid, h = slow.apply(module, params, *args)
    blurred = np.float64(fir_blur(args[0]))
    expected = slow.conv(params["residual"], blurred)[:, 1::2, 1::2] + H
    np.testing.assert_allclose(h, expected / 2**0.5, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(pyramid, h)


def test_input_skip():
    args = jnp.asarray(X), jnp.asarray(H)
    module = InputSkip(12)
    params = slow.random_params(module, *args)
    pyramid, h = slow.apply(module, params, *args)
    expected = fir_downsample(args[0])
    np.testing.assert_allclose(pyramid, expected, rtol=1e-5, atol=1e-6)
    expected = slow.conv(params["combine"], np.float64(expected)) + H
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-4)


def test_input_skip_beside_the_features():
    args = jnp.asarray(X), jnp.asarray(H)
    params = slow.random_params(InputSkip(12), *args)
    module = InputSkip(12, combine=concatenate)
    pyramid, h = slow.apply(module, params, *args)
    image = slow.conv(params["combine"], np.float64(pyramid))
    expected = np.concatenate([image, H], axis=-1)
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.5**0.5, 1.0])
def test_residual_output(scale):
    args = jnp.asarray(H), jnp.asarray(X)
    module = ResidualOutput(8, scale=scale) if scale == 1 else ResidualOutput(8)
    params = slow.random_params(module, *args)
    # Where zeros are far, the filter's own border does not matter.
    wide = fir_upsample(jnp.pad(args[0], ((0, 0), (3, 3), (3, 3), (0, 0))))
    expected = slow.conv(params["residual"], np.float64(wide))[:, 6:-6, 6:-6] + X
    ours = slow.apply(module, params, *args)
    np.testing.assert_allclose(ours, expected * scale, rtol=1e-4, atol=1e-4)


def test_residual_output_of_nearest_pixels_is_nearest_conv():
    args = jnp.asarray(H), jnp.zeros_like(X)
    module = ResidualOutput(8, upsample=nearest_upsample, scale=1.0)
    params = slow.random_params(module, *args)
    ours = slow.apply(module, params, *args)
    params = {"conv": params["residual"]}
    expected = slow.apply(NearestConv(8), params, args[0], jnp.asarray(TIME), False)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
