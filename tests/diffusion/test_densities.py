from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from research.diffusion.densities import GaussianMixture
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedLangevin, _langevin

MIXTURE = GaussianMixture(means=((1.0, 0.0), (-1.0, 0.5)), weights=(0.7, 0.3), std=0.8)
MODES = GaussianMixture()


def test_log_density_matches_scipy():
    x = jax.random.normal(jax.random.key(0), (6, 2))
    expected = np.log(
        sum(
            weight * stats.multivariate_normal(mean, 0.64).pdf(np.asarray(x))
            for mean, weight in zip(MIXTURE.means, MIXTURE.weights, strict=True)
        )
    )
    np.testing.assert_allclose(MIXTURE.log_density(x), expected, rtol=1e-5)


def test_score_is_the_gradient_far_out_too():
    x = 20 * jax.random.normal(jax.random.key(0), (50, 2))
    gradient = jax.grad(lambda x: MIXTURE.log_density(x).sum())(x)
    np.testing.assert_allclose(MIXTURE.score(x), gradient, rtol=1e-4, atol=1e-4)


def test_noise_adds_variance():
    x = jax.random.normal(jax.random.key(0), (5, 2))
    noise = jnp.array([0.0, 0.3, 0.6, 1.0, 20.0])
    for index in range(5):
        noisy = replace(MIXTURE, std=float((0.64 + noise[index] ** 2) ** 0.5))
        for method in ("score", "log_density", "responsibilities"):
            np.testing.assert_allclose(
                getattr(MIXTURE, method)(x, noise)[index],
                getattr(noisy, method)(x)[index],
                rtol=1e-4,
                atol=1e-6,
            )


def test_draws_have_the_moments():
    x = MIXTURE.sample(jax.random.key(0), 200_000)
    mean = 0.7 * np.array([1.0, 0.0]) + 0.3 * np.array([-1.0, 0.5])
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.01)
    between = 0.21 * np.array([2.0, -0.5]) ** 2
    np.testing.assert_allclose(x.var(axis=0), 0.64 + between, rtol=0.01)


def heavy(x):
    """The share of draws in the heavier mode, and its deviation."""
    chosen = MODES.responsibilities(x)[:, 0] > 0.5
    return chosen.mean(), x[chosen].std(axis=0).mean()


def test_langevin_forgets_the_weights_of_the_modes():
    """arXiv:1907.05600, Fig. 3: 1280 chains from the uniform square, exact scores.

    The paper's step 0.1 drifts by 0.05: half of it here, where the drift is the step.
    """
    x = jax.random.uniform(jax.random.key(0), (1280, 2), minval=-8, maxval=8)
    step = jnp.full(1280, 0.05)

    @jax.jit
    def run(x):
        score = lambda x, t: MODES.score(x)  # noqa: E731
        return _langevin(jax.random.key(1), x, jnp.zeros(1280), score, step, 1000)

    x = run(x)
    share, _ = heavy(x)
    assert share < 0.62


def test_annealed_langevin_finds_them():
    """Ten levels from 20 to 1; the noise of the last one stays: it has variance 2."""
    process = VE(1.0, 20.0)

    def score(x, t):
        return MODES.score(x, process.sigma(t))

    sampler = AnnealedLangevin(10, 100, 0.05, denoise=False, low=-8.0, high=8.0)
    x, _ = jax.jit(lambda rng: sampler(rng, score, process, (1280, 2)))(
        jax.random.key(0)
    )
    share, std = heavy(x)
    assert 0.74 < share < 0.86
    np.testing.assert_allclose(std, 2**0.5, rtol=0.1)
