import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

from research.diffusion.karras import Karras, noise_level, time_of
from research.diffusion.processes import DDPM, VE, VP, SubVP
from research.errors import UserError

SHAPE = (4096, 4, 4, 1)
PROCESSES = {"ve": VE(0.01, 20.0), "vp": VP(), "sub_vp": SubVP(), "ddpm": DDPM()}


def draw(sampler, data, shape=SHAPE, seed=0):
    run = jax.jit(lambda rng: sampler(rng, data.score, data.process, shape))
    return run(jax.random.key(seed))


RUNS = {name: (process, 10.0) for name, process in PROCESSES.items()}
RUNS["ve_deterministic"] = (PROCESSES["ve"], 0.0)


@pytest.mark.parametrize(("process", "churn"), RUNS.values(), ids=RUNS)
def test_returns_the_data(process, churn):
    """65,536 numbers: the standard error of the variance is 0.6 %."""
    data = Gaussian(process)
    x, evaluations = draw(Karras(80, churn=churn), data)
    assert x.shape == SHAPE and x.dtype == jnp.float32
    np.testing.assert_allclose(x.mean(), data.mean, rtol=0.03)
    np.testing.assert_allclose(x.var(), data.std**2, rtol=0.03)
    assert evaluations == 159 and evaluations.dtype == jnp.int32


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_times_of_levels(process):
    times = jnp.array([0.0, 1e-3, 0.25, 0.9, 1.0])
    levels = noise_level(process, times)
    first = time_of(process, levels)
    np.testing.assert_allclose(
        noise_level(process, first), levels, rtol=1e-5, atol=1e-6
    )
    before = noise_level(process, first[2:] - 2e-3)
    assert (before < levels[2:]).all()
    np.testing.assert_array_equal(time_of(process, jnp.array([1e9])), [1.0])


@pytest.mark.parametrize("rho", [1.0, 7.0, math.inf])
def test_levels(rho):
    """Eq. 5 in float64, from the level of time 1 to that of `min_time`."""
    high, low = 20.0, 0.01 * 2000**0.2
    position = np.arange(9) / 8
    expected = (
        high * (low / high) ** position
        if math.isinf(rho)
        else (high ** (1 / rho) + position * (low ** (1 / rho) - high ** (1 / rho)))
        ** rho
    )
    ours = Karras(9, rho, min_time=0.2).levels(VE(0.01, 20.0))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_is_second_order():
    """Without noise: half the steps, four times the error."""
    data = Gaussian(VE(0.01, 20.0))

    def error(num_steps):
        fine, _ = draw(Karras(512), data, (64, 4))
        return float(jnp.abs(draw(Karras(num_steps), data, (64, 4))[0] - fine).max())

    assert 3.2 < error(32) / error(64) < 5


def test_a_step_to_the_data_is_its_mean():
    """One step, no noise: the data's mean given x(1)."""
    data = Gaussian(VP())
    x, evaluations = draw(Karras(1), data, (5, 3))
    start = data.process.prior(jax.random.split(jax.random.key(0))[0], (5, 3))
    a, s = (part[0] for part in data.process.marginal(jnp.ones(1), jnp.ones(1)))
    kept = a * data.std**2 / (a**2 * data.std**2 + s**2)
    np.testing.assert_allclose(x, data.mean + kept * (start - a * data.mean), atol=1e-4)
    assert evaluations == 1


def test_churn_raises_the_levels_that_it_is_for():
    """A score of zero keeps x: what is left is the noise, S_noise^2 (hat^2 - sigma^2).

    With three levels 2, 1, 0.5 (a geometric ladder), of which only 1 and 0.5 are
    churned, by half of what 10 / 3 would be: at most sqrt(2) - 1.
    """
    process = VE(0.5, 2.0)
    flat = lambda x, t: jnp.zeros_like(x)  # noqa: E731

    def added(**churn):
        sampler = Karras(3, math.inf, noise_scale=1.5, min_time=0.0, **churn)
        x, _ = sampler(jax.random.key(0), flat, process, (100, 1000))
        return x.var() / 1.5**2 - 4 / 1.5**2

    all_of_it = added(churn=10.0, max_churned=1.5)
    np.testing.assert_allclose(all_of_it, 1 + 0.25, rtol=0.05)  # doubles the square
    np.testing.assert_allclose(
        added(churn=0.3, max_churned=1.5), 0.21 * (1 + 0.25), rtol=0.2
    )
    np.testing.assert_allclose(
        added(churn=10.0, min_churned=0.75, max_churned=1.5), 1, rtol=0.05
    )
    assert abs(added()) < 0.02
    # The level of time 1 is the highest that the score is known at.
    np.testing.assert_allclose(added(churn=10.0), 1 + 0.25, rtol=0.05)


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"rho": 0.0}])
def test_no_steps(wrong):
    with pytest.raises(UserError, match="at least one step, and a positive rho"):
        Karras(**wrong)
