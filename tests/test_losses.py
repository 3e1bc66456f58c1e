import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.diffusion.processes import VP, batch_mul
from research.losses import denoising_score_matching, half_sum_over_dims

PROCESS, VARIANCE, NUM, DIMS = VP(), 0.3, 20_000, 4


def perturbed_gaussian(t):
    """Data N(0, VARIANCE I) at times t: the exact score, the noise, the deviation."""
    data_rng, noise_rng = jax.random.split(jax.random.key(0))
    x0 = VARIANCE**0.5 * jax.random.normal(data_rng, (NUM, DIMS))
    noise = jax.random.normal(noise_rng, x0.shape)
    mean, std = PROCESS.marginal(x0, t)
    x = mean + batch_mul(std, noise)
    signal, _ = PROCESS.marginal(jnp.ones_like(t), t)
    return batch_mul(-1 / (signal**2 * VARIANCE + std**2), x), noise, std


def signal_energy(t):
    return np.exp(-(0.1 * t + 19.9 * t**2 / 2))


def assert_mean(losses, expected):
    """Within 3 standard errors."""
    assert abs(losses.mean() - expected) < 3 * losses.std() / np.sqrt(losses.size)


def test_loss_of_the_exact_score_is_the_analytic_optimum():
    """E |eps - E[eps|x]|^2 = a v / (a v + 1 - a), a the signal's energy, v the data's
    variance, averaged over uniform times."""
    t = jax.random.uniform(jax.random.key(1), (NUM,), minval=1e-5)
    score, noise, std = perturbed_gaussian(t)
    losses = denoising_score_matching(score, noise, std)
    assert losses.shape == (NUM,)
    energy = signal_energy(np.linspace(1e-5, 1, 100_001))
    optimum = np.mean(energy * VARIANCE / (energy * VARIANCE + 1 - energy))
    assert_mean(losses, optimum)
    assert denoising_score_matching(0.8 * score, noise, std).mean() > 1.05 * optimum


@pytest.mark.parametrize("time", [0.05, 0.5])
def test_likelihood_weighting_has_its_closed_form(time):
    """g^2 E|score + eps/std|^2 = g^2 / std^2 times the optimum at that time."""
    t = jnp.full(NUM, time)
    score, noise, std = perturbed_gaussian(t)
    losses = denoising_score_matching(score, noise, std, PROCESS.diffusion(t))
    energy, beta = signal_energy(time), 0.1 + 19.9 * time
    optimum = energy * VARIANCE / (energy * VARIANCE + 1 - energy)
    assert_mean(losses, beta / (1 - energy) * optimum)


def test_without_weights_it_is_the_squared_error_of_the_noise():
    prediction, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    std = jnp.array([0.001, 0.3, 50.0])
    score = batch_mul(-1 / std, prediction)
    squares = np.square(prediction - noise)
    mean = denoising_score_matching(score, noise, std)
    np.testing.assert_allclose(mean, squares.mean(axis=(1, 2, 3)), rtol=1e-5)
    half_sum = denoising_score_matching(score, noise, std, reduction=half_sum_over_dims)
    np.testing.assert_allclose(half_sum, squares.sum(axis=(1, 2, 3)) / 2, rtol=1e-5)
