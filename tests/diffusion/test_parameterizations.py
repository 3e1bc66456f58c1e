import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.diffusion.parameterizations import (
    Clean,
    Level,
    Noise,
    RawScore,
    ScaledScore,
    Velocity,
    log_std,
    scales,
    time,
)
from research.diffusion.processes import VE, VP, SubVP, batch_mul

T = jnp.array([0.05, 0.4, 0.9])


def example(process):
    """x0, noise, x, a and s at the times T."""
    x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 4))
    a, s = scales(process, T)
    return x0, noise, batch_mul(a, x0) + batch_mul(s, noise), a, s


@pytest.mark.parametrize("process", [VP(), VE(0.1, 5.0), SubVP()], ids=str)
@pytest.mark.parametrize(
    "kind", [Noise(), ScaledScore(), RawScore(), Clean(), Velocity()], ids=str
)
def test_each_is_its_formula_and_goes_both_ways(process, kind):
    x0, noise, x, a, s = example(process)
    row = lambda scale: np.asarray(scale)[:, None]  # noqa: E731
    wanted = {
        Noise: noise,
        ScaledScore: -noise,
        RawScore: -noise / row(s),
        Clean: x0,
        Velocity: row(a) * noise - row(s) * x0,
    }[type(kind)]
    # Near t = 1 a is small, and x0 the difference of two nearly equal terms.
    near = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(kind.from_noise(noise, x, a, s), wanted, **near)
    np.testing.assert_allclose(kind.to_noise(wanted, x, a, s), noise, **near)


def test_a_perfect_score_is_that_of_a_point():
    x0, noise, x, a, s = example(VP())
    score = RawScore().from_noise(noise, x, a, s)
    expected = -(x - batch_mul(a, x0)) / np.asarray(s)[:, None] ** 2
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


def test_conditions():
    process = VE(0.01, 1.0)
    np.testing.assert_array_equal(time(process, T), T)
    levels = jnp.arange(10) / 9
    np.testing.assert_allclose(
        log_std(process, levels), np.log(np.geomspace(0.01, 1, 10)), atol=1e-5
    )
    np.testing.assert_array_equal(Level(10)(process, levels), np.arange(10)[::-1])
