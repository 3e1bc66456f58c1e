import jax
import pytest

from research.layers.initializers import uniform_fan_avg


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_variance_is_scale_over_the_mean_fan(scale):
    kernel = uniform_fan_avg(scale)(jax.random.key(0), (3, 3, 64, 192))
    variance = scale / (9 * (64 + 192) / 2)
    assert float(kernel.var()) == pytest.approx(variance, rel=0.02)
    # Uniform: nothing beyond sqrt(3) standard deviations, and something near.
    assert float(abs(kernel).max()) == pytest.approx((3 * variance) ** 0.5, rel=0.01)


def test_zero_scale_is_almost_zero():
    kernel = uniform_fan_avg(0.0)(jax.random.key(0), (128, 128))
    assert 0 < float(abs(kernel).max()) < 1e-5
