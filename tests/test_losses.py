import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.diffusion.densities import GaussianMixture
from research.diffusion.processes import VP, batch_mul
from research.losses import (
    cross_entropy,
    denoising_score_matching,
    explicit_score_matching,
    half_sum_over_dims,
    implicit_score_matching,
    sliced_score_matching,
)

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


# Objectives that need no noise, on a mixture whose score is known.

MIXTURE = GaussianMixture(means=((1.0, 0.0), (-1.0, 0.5)), weights=(0.7, 0.3), std=0.8)


def field(x):
    """Some smooth field that is not the score."""
    weights = jnp.array([[-0.7, 0.4], [0.1, -0.9]])
    return jnp.tanh(x @ weights) - 0.5 * x


def test_objectives_differ_by_their_constants():
    """ESM = ISM + 1/2 E|score|^2, and SSM = SSM-VR = ISM, in expectation."""
    x_rng, probe_rng = jax.random.split(jax.random.key(0))
    x = MIXTURE.sample(x_rng, 400_000)
    target = MIXTURE.score(x)
    explicit = explicit_score_matching(field(x), target)
    implicit = implicit_score_matching(field, x)
    energy = explicit_score_matching(target, jnp.zeros_like(target))
    assert_mean(explicit - implicit - energy, 0.0)
    for probes in (
        jax.random.rademacher(probe_rng, (2, *x.shape), x.dtype),
        jax.random.normal(probe_rng, (2, *x.shape)),
    ):
        for reduced in (True, False):
            sliced = sliced_score_matching(field, x, probes, reduced)
            assert sliced.shape == (400_000,)
            assert_mean(sliced - implicit, 0.0)


def test_reduced_variance_is_less():
    x_rng, probe_rng = jax.random.split(jax.random.key(0))
    x = MIXTURE.sample(x_rng, 10_000)
    probes = jax.random.normal(probe_rng, (1, *x.shape))
    reduced, plain = (
        (sliced_score_matching(field, x, probes, choice)).std()
        for choice in (True, False)
    )
    assert reduced < plain


def test_denoising_is_explicit_matching_of_the_smoothed_density():
    """Up to 1/2 E|noise/std|^2 - 1/2 E|smoothed score|^2 (Vincent 2011)."""
    x_rng, noise_rng = jax.random.split(jax.random.key(0))
    x = MIXTURE.sample(x_rng, 400_000)
    noise, std = jax.random.normal(noise_rng, x.shape), 0.5
    perturbed = x + std * noise
    target = MIXTURE.score(perturbed, std)
    denoising = explicit_score_matching(field(perturbed), -noise / std)
    explicit = explicit_score_matching(field(perturbed), target)
    zero = jnp.zeros_like(target)
    constant = explicit_score_matching(zero, -noise / std)
    constant -= explicit_score_matching(zero, target)
    assert_mean(denoising - explicit - constant, 0.0)


def test_implicit_matching_has_the_exact_trace():
    matrix = jnp.array([[1.0, 2.0, 0.5], [0.0, -3.0, 1.0], [4.0, 0.2, 0.5]])
    x = jax.random.normal(jax.random.key(0), (5, 3))
    expected = -1.5 + 0.5 * np.square(x @ matrix.T).sum(axis=1)
    found = implicit_score_matching(lambda x: x @ matrix.T, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    images = x.reshape(5, 3, 1, 1)
    found = implicit_score_matching(
        lambda x: (x.reshape(5, 3) @ matrix.T).reshape(x.shape), images
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_cross_entropy():
    """In float32 whatever the logits are in, and finite where a softmax underflows."""
    logits = jnp.array([[2.0, 0.0], [0.0, 200.0]])
    losses = cross_entropy(logits.astype(jnp.bfloat16), jnp.array([0, 0]))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-2.0)), 200.0], rtol=1e-6)
