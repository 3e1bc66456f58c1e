import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.diffusion.pixels import Pixels

every_level = pytest.mark.parametrize(
    "pixels",
    [
        Pixels(levels, low, 1.0, dequantize)
        for levels in (2, 17, 256)
        for low in (-1.0, 0.0)
        for dequantize in (False, True)
    ],
    ids=str,
)


@every_level
def test_levels_survive_the_round_trip(pixels):
    levels = jnp.arange(pixels.levels, dtype=jnp.uint8)[:, None]
    x = pixels.to_data(levels, jax.random.key(0))
    assert x.dtype == jnp.float32 and pixels.low <= x.min() <= x.max() <= pixels.high
    np.testing.assert_array_equal(pixels.to_levels(x), levels)
    image = pixels.to_image(x)
    assert image.dtype == jnp.uint8 and image.min() == 0 and image.max() == 255
    if pixels.levels == 256:
        np.testing.assert_array_equal(image, levels)


@every_level
def test_out_of_range_values_are_clipped(pixels):
    x = jnp.array([[pixels.low - 3, pixels.high + 3]])
    np.testing.assert_array_equal(pixels.to_levels(x), [[0, pixels.levels - 1]])


def test_plain_levels_span_the_range():
    levels = jnp.array([[0, 4, 16]], jnp.uint8)
    np.testing.assert_allclose(Pixels(17).to_data(levels), [[-1, -0.5, 1]])
    np.testing.assert_allclose(Pixels(17, low=0.0).to_data(levels), [[0, 0.25, 1]])


def test_dequantized_levels_fill_their_bins_evenly():
    x = Pixels(4, 0.0, 1.0, True).to_data(
        jnp.full((100_000, 1), 2, jnp.uint8), jax.random.key(0)
    )
    assert 0.5 <= x.min() < 0.501 and 0.749 < x.max() <= 0.75
    np.testing.assert_allclose(x.mean(), 0.625, atol=1e-3)


def test_dequantizing_needs_a_key():
    with pytest.raises(ValueError, match="key"):
        Pixels(dequantize=True).to_data(jnp.zeros((1, 1), jnp.uint8))


def test_bits_per_dim_offsets():
    nothing = jnp.zeros(1)
    assert Pixels().bits_per_dim(nothing, 5)[0] == 7
    assert Pixels(low=0.0).bits_per_dim(nothing, 5)[0] == 8


def test_the_uniform_density_costs_all_bits():
    """-log2 of 1/levels for each of 6 dimensions, whatever the range."""
    for pixels in (Pixels(16), Pixels(16, 0.0, 1.0), Pixels(16, -3.0, 5.0)):
        nats = -6 * jnp.log(jnp.array([pixels.high - pixels.low]))
        np.testing.assert_allclose(pixels.bits_per_dim(nats, 6), 4, rtol=1e-6)
