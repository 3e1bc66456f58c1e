import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian
from scipy import stats

from research.diffusion.processes import (
    DDPM,
    VE,
    VP,
    Process,
    SubVP,
    batch_mul,
    chain_index,
    normal_log_density,
    probability_flow,
    reverse_sde,
)
from research.errors import UserError

processes = pytest.mark.parametrize(
    "process",
    [VP(), VP(0.5, 4.0), VE(), VE(0.1, 2.0), SubVP(), SubVP(0.5, 4.0)],
    ids=str,
)


class Brownian(Process):
    """dx = -x dt + 2 dw, a process without a Markov chain of its own."""

    def drift(self, x, t):
        return -x

    def diffusion(self, t):
        return 2 * jnp.ones_like(t)


def test_batch_mul_scales_each_example():
    x = jnp.arange(12.0).reshape(3, 2, 2)
    scaled = batch_mul(jnp.array([1.0, 10.0, 100.0]), x)
    for index, factor in enumerate((1, 10, 100)):
        np.testing.assert_array_equal(scaled[index], factor * x[index])


def test_normal_log_density_matches_scipy():
    x = jax.random.normal(jax.random.key(0), (5, 3, 2))
    expected = stats.norm(0, 2.5).logpdf(x).sum(axis=(1, 2))
    np.testing.assert_allclose(normal_log_density(x, 2.5), expected, rtol=1e-5)


@processes
def test_marginal_matches_simulated_paths(process):
    """Mean and deviation of 1e5 Euler paths that start in one point, within 1 %."""
    dt = 1 / 800
    rng, start_rng = jax.random.split(jax.random.key(0))
    start = jnp.full(100_000, 2.0)
    # VE's x(0) has noise already.
    _, initial = process.marginal(start, jnp.zeros_like(start))
    start = start + initial * jax.random.normal(start_rng, start.shape)

    def step(x, inputs):
        index, rng = inputs
        t = jnp.full_like(x, (index + 0.5) * dt)
        noise = jax.random.normal(rng, x.shape)
        x = x + process.drift(x, t) * dt + process.diffusion(t) * dt**0.5 * noise
        return x, (x.mean(), x.std())

    indices, rngs = jnp.arange(400), jax.random.split(rng, 400)
    _, (means, stds) = jax.jit(lambda x: jax.lax.scan(step, x, (indices, rngs)))(start)
    times = jnp.array([0.1, 0.25, 0.5])
    mean, std = process.marginal(jnp.full(3, 2.0), times)
    after = np.array([80, 200, 400]) - 1
    np.testing.assert_allclose(means[after], mean, rtol=0.01)
    np.testing.assert_allclose(stds[after], std, rtol=0.01)


@processes
def test_marginal_solves_the_equations_of_its_moments(process):
    """d mean/dt = f(mean, t) and d var/dt = 2 f'(t) var + g(t)^2."""
    t = jnp.linspace(0.01, 1.0, 50)
    x0 = jnp.full_like(t, 1.5)
    moments = lambda t: process.marginal(x0, t)  # noqa: E731
    (mean, std), (mean_rate, std_rate) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
    slope = process.drift(jnp.ones_like(t), t)
    np.testing.assert_allclose(mean_rate, process.drift(mean, t), rtol=1e-4)
    variance_rate = 2 * slope * std**2 + process.diffusion(t) ** 2
    # Near t = 1 it is the difference of two terms near 20.
    np.testing.assert_allclose(2 * std * std_rate, variance_rate, rtol=1e-4, atol=1e-5)


def test_vp_keeps_the_digits_of_small_deviations():
    t = jnp.array([1e-5, 1e-4])
    _, std = VP().marginal(jnp.zeros(2), t)
    integral = 0.1 * np.array([1e-5, 1e-4]) + 9.95 * np.array([1e-5, 1e-4]) ** 2
    np.testing.assert_allclose(std, np.sqrt(-np.expm1(-integral)), rtol=1e-5)


def test_vp_ends_in_its_prior():
    process = VP()
    mean, std = process.marginal(jnp.ones((1, 2)), jnp.ones(1))
    assert abs(float(mean[0, 0])) < 0.01
    assert abs(float(std[0]) - 1) < 1e-4
    draws = process.prior(jax.random.key(0), (50_000, 2))
    np.testing.assert_allclose(draws.std(), std[0], rtol=0.01)
    np.testing.assert_allclose(
        process.log_prior(draws[:4]), normal_log_density(draws[:4]), rtol=1e-6
    )


def test_vp_chain_is_ddpm():
    """On the samplers' grid, the chain's betas are DDPM's, 1e-4 to 0.02, in reverse."""
    times = jnp.linspace(1.0, 1e-3, 1000)
    betas = np.linspace(1e-4, 0.02, 1000)[::-1]
    step, scale = VP().discretize(jnp.ones(1000), times, 1e-3)
    np.testing.assert_allclose(scale**2, betas, rtol=1e-5)
    np.testing.assert_allclose((1 + step) ** 2, 1 - betas, rtol=1e-5)


def test_vp_chain_follows_the_marginal():
    """The product of the chain's 1 - beta_i is the marginal's energy of the signal."""
    times = jnp.linspace(1.0, 1e-3, 1000)
    step, _ = VP().discretize(jnp.ones(1000), times, 1e-3)
    for time in (0.25, 0.5):
        signal, _ = VP().marginal(jnp.ones(1), jnp.array([time]))
        product = jnp.prod(jnp.where(times <= time, 1 + step, 1))
        np.testing.assert_allclose(product, signal[0], rtol=0.01)


def test_chain_index_survives_float32():
    for num_levels in (10, 232, 1000, 2311):
        levels = np.arange(num_levels)
        t = jnp.asarray(levels) / (num_levels - 1)
        np.testing.assert_array_equal(chain_index(t, num_levels), levels)
        between = t[:-1] + 0.999 / (num_levels - 1)
        np.testing.assert_array_equal(chain_index(between, num_levels), levels[:-1])


@pytest.mark.parametrize("process", [VP(), VE()], ids=str)
def test_chains_converge_to_their_process(process):
    """F/dt and G^2/dt of one step approach the SDE's as the chain gets longer."""
    t, x = jnp.array([0.2, 0.5, 0.8]), jnp.ones(3)

    def errors(num_levels):
        # In the middle between two levels, where the index does not jump.
        t_mid = (jnp.floor(t * (num_levels - 1)) + 0.5) / (num_levels - 1)
        step, scale = process.discretize(x, t_mid, 1 / num_levels)
        drift = jnp.abs(step * num_levels - process.drift(x, t_mid))
        rate = jnp.square(process.diffusion(t_mid))
        return drift, jnp.abs(scale**2 * num_levels / rate - 1)

    (drift, rate), (finer_drift, finer_rate) = errors(100), errors(1600)
    assert (finer_drift <= drift / 8).all()
    assert (finer_rate <= rate / 8).all() and (finer_rate < 0.02).all()


def test_ve_levels_are_a_geometric_ladder():
    """NCSN's: ten levels from 1 to 0.01."""
    ladder = np.geomspace(1.0, 0.01, 10)
    _, std = VE(0.01, 1.0).marginal(jnp.zeros(10), jnp.arange(10)[::-1] / 9)
    np.testing.assert_allclose(std, ladder, rtol=1e-5)


def test_ve_chain_adds_up_to_its_levels():
    times = jnp.arange(50) / 49
    step, scale = VE().discretize(jnp.ones(50), times, 1 / 50)
    assert not step.any()
    np.testing.assert_allclose(jnp.cumsum(scale**2) ** 0.5, VE().sigma(times), 1e-5)


def test_ve_ancestral_is_the_posterior_of_its_chain():
    """Given x0 exactly, x_{i-1} has the mean and deviation of Bayes' rule."""
    x, x0, t, dt = jnp.array([3.0]), 0.4, jnp.array([0.6]), 1 / 30
    sigma, before = (float(level[0]) for level in VE().chain_sigmas(t, dt))
    precision = 1 / before**2 + 1 / (sigma**2 - before**2)
    mean = (x0 / before**2 + 3.0 / (sigma**2 - before**2)) / precision
    found, std = VE().ancestral(x, (x0 - x) / sigma**2, t, dt)
    np.testing.assert_allclose(found, [mean], rtol=1e-5)
    np.testing.assert_allclose(std, [precision**-0.5], rtol=1e-5)


def test_ddpm_has_the_marginals_of_its_chain():
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    times = jnp.arange(1000) / 999
    mean, std = DDPM().marginal(jnp.ones(1000), times)
    np.testing.assert_allclose(mean, kept**0.5, rtol=1e-5)
    np.testing.assert_allclose(std, (1 - kept) ** 0.5, rtol=1e-5)


def test_sub_vp_has_less_variance_and_its_own_prior():
    t = jnp.linspace(0.01, 1, 20)
    mean, std = SubVP().marginal(jnp.ones(20), t)
    vp_mean, vp_std = VP().marginal(jnp.ones(20), t)
    np.testing.assert_array_equal(mean, vp_mean)
    np.testing.assert_allclose(std, vp_std**2, rtol=1e-5)


def test_ve_prior_is_its_last_level():
    draws = VE().prior(jax.random.key(0), (50_000, 2))
    np.testing.assert_allclose(draws.std(), 50, rtol=0.01)
    expected = stats.norm(0, 50).logpdf(draws[:4]).sum(axis=1)
    np.testing.assert_allclose(VE().log_prior(draws[:4]), expected, rtol=1e-5)


def test_vp_refuses_a_chain_too_short_for_its_betas():
    x, t = jnp.ones(2), jnp.ones(2)
    VP().discretize(x, t, 1 / 21)
    with pytest.raises(UserError, match="20 steps"):
        VP().discretize(x, t, 1 / 20)


def test_a_process_without_a_chain_takes_euler_maruyama_steps():
    x, t = jnp.array([1.0, 3.0]), jnp.array([0.2, 0.7])
    step, scale = Brownian().discretize(x, t, 0.01)
    np.testing.assert_allclose(step, [-0.01, -0.03], rtol=1e-6)
    np.testing.assert_allclose(scale, [0.2, 0.2], rtol=1e-6)


def test_reversals_subtract_the_score_from_any_process():
    x, t = jnp.array([[1.0], [3.0]]), jnp.array([0.2, 0.7])
    score = lambda x, t: 10 * x  # noqa: E731
    reverse, flow = reverse_sde(Brownian(), score), probability_flow(Brownian(), score)
    np.testing.assert_allclose(reverse.drift(x, t), -x - 4 * 10 * x)
    np.testing.assert_allclose(flow.drift(x, t), -x - 2 * 10 * x)
    np.testing.assert_allclose(reverse.diffusion(t), [2, 2])
    np.testing.assert_allclose(flow.diffusion(t), [0, 0])
    for equation in (reverse, flow):
        step, scale = equation.discretize(x, t, 0.01)
        np.testing.assert_allclose(step, 0.01 * equation.drift(x, t), rtol=1e-6)
        np.testing.assert_allclose(scale, 0.1 * equation.diffusion(t), rtol=1e-6)


@processes
def test_probability_flow_carries_the_marginals(process):
    """Along the ODE a sample stays the same number of deviations from the mean."""
    data = Gaussian(process)
    flow = probability_flow(process, data.score)
    t = jnp.linspace(0.05, 1.0, 20)

    def path(t):
        mean, std = data.moments(t)
        return mean + 1.3 * std

    x, velocity = jax.jvp(path, (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(velocity, flow.drift(x, t), rtol=2e-3, atol=1e-4)
