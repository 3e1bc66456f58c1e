from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

from research.diffusion.densities import GaussianMixture
from research.diffusion.guidance import (
    Measurement,
    colourization,
    guided,
    inpainting,
    linear,
    low_resolution,
    solve,
)
from research.diffusion.processes import VE, VP
from research.diffusion.samplers import (
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    reverse_diffusion,
)
from research.errors import UserError

MODES = GaussianMixture(means=((2.0, 0.0), (-2.0, 1.0)), weights=(0.9, 0.1), std=0.5)
PROCESS = VE(0.01, 100.0)
SAMPLER = PredictorCorrector(reverse_diffusion, Langevin(0.05), 200, 1e-5)


def score(x, t):
    return MODES.score(x, PROCESS.sigma(t))


def rare(x, t):
    """log p(the second mode | x(t)), exact: a perfect noise-conditional classifier."""
    return jnp.log(MODES.responsibilities(x, PROCESS.sigma(t))[:, 1])


def test_a_classifier_leads_to_its_class():
    """p(x) p(rare | x) is the rare mode alone: N((-2, 1), 1/4)."""
    run = jax.jit(
        lambda rng: ProbabilityFlow(min_time=1e-5)(
            rng, guided(score, rare), PROCESS, (20_000, 2)
        )
    )
    x, _ = run(jax.random.key(0))
    np.testing.assert_allclose(x.mean(axis=0), [-2, 1], atol=0.03)
    np.testing.assert_allclose(x.var(axis=0), 0.25, rtol=0.05)


def test_weight_scales_the_gradient():
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.full(4, 0.5)
    plain, once, twice = (
        guided(score, rare, weight)(x, t) for weight in (0.0, 1.0, 2.0)
    )
    np.testing.assert_allclose(plain, score(x, t))
    np.testing.assert_allclose(twice - once, once - plain, rtol=1e-4, atol=1e-6)


def correlated(process):
    """The exact score of pairs of variance 1 and correlation 0.8, as 1x2x1 images."""
    covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])

    def score(x, t):
        a, s = process.marginal(jnp.ones_like(t), t)
        total = a[:, None, None] ** 2 * covariance[None]
        total += s[:, None, None] ** 2 * jnp.eye(2)[None]
        flat = x.reshape(-1, 2, 1)
        return -jnp.linalg.solve(total, flat).reshape(x.shape)

    return score


@pytest.mark.parametrize("process", [PROCESS, VP()], ids=str)
def test_the_unknown_follows_the_known(process):
    """Given the left pixel 1.5, the right one is about N(1.2, 0.36).

    Imposing coordinates is an approximation: the unknown ones see the known ones'
    noise, so that the mean is drawn towards the prior's.
    """
    image = jnp.full((8192, 1, 2, 1), 1.5)
    measurement = inpainting(image, jnp.array([[1.0, 0.0]]))
    sampler = PredictorCorrector(reverse_diffusion, Langevin(0.15, 3), 400, 1e-3)
    run = jax.jit(
        lambda rng: solve(rng, sampler, correlated(process), process, measurement)
    )
    x, evaluations = run(jax.random.key(0))
    assert evaluations == 1600
    left, right = x[:, 0, 0, 0], x[:, 0, 1, 0]
    mean, _ = process.marginal(jnp.full(1, 1.5), jnp.array([1e-3]))
    np.testing.assert_allclose(left, mean[0], rtol=1e-6)
    assert 0.9 < right.mean() < 1.3
    assert 0.3 < right.var() < 0.5


def test_known_coordinates_have_their_marginal():
    image = jnp.full((50_000, 1, 2, 1), 0.7)
    measurement = inpainting(image, jnp.array([[0.0, 1.0]]))
    x, t = jnp.full((50_000, 1, 2, 1), 9.0), jnp.full(50_000, 0.3)
    imposed = measurement.impose(jax.random.key(0), x, t, VP())
    mean, std = VP().marginal(jnp.full(1, 0.7), jnp.array([0.3]))
    np.testing.assert_array_equal(imposed[:, 0, 0, 0], 9)
    np.testing.assert_allclose(imposed[:, 0, 1, 0].mean(), mean[0], atol=0.01)
    np.testing.assert_allclose(imposed[:, 0, 1, 0].std(), std[0], rtol=0.02)


def test_colourization_keeps_the_gray_and_draws_the_rest():
    data = Gaussian(VP(), mean=0.1)
    image = jax.random.uniform(jax.random.key(1), (64, 4, 4, 3), minval=-1.0)
    sampler = PredictorCorrector(num_steps=200, min_time=1e-5)
    run = jax.jit(
        lambda rng: solve(rng, sampler, data.score, VP(), colourization(image))
    )
    x, _ = run(jax.random.key(0))
    np.testing.assert_allclose(x.mean(-1), image.mean(-1), atol=1e-5)
    # What the gray leaves is a Gaussian in the two other coordinates.
    gray_free = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(gray_free.var(), data.std**2 * 2 / 3, rtol=0.05)
    assert jnp.abs(gray_free - (image - image.mean(-1, keepdims=True))).mean() > 0.3


def test_colours_are_an_orthonormal_basis():
    image = jax.random.normal(jax.random.key(0), (2, 3, 3, 3))
    measurement = colourization(image)
    there = measurement.transform(image)
    np.testing.assert_allclose(there[..., 0], 3**0.5 * image.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(
        jnp.linalg.norm(there, axis=-1), jnp.linalg.norm(image, axis=-1), rtol=1e-5
    )
    np.testing.assert_allclose(measurement.inverse(there), image, atol=1e-5)


def test_any_orthonormal_measurement():
    """Half of the coordinates in a random basis of 6 dimensions."""
    data = Gaussian(VP(), mean=0.1)
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (6, 6)))[0]
    x0 = jax.random.normal(jax.random.key(1), (32, 6))
    measurement = Measurement(
        x0 @ basis,
        jnp.float32(jnp.arange(6) < 3),
        lambda x: x @ basis,
        lambda y: y @ basis.T,
    )
    sampler = PredictorCorrector(num_steps=100, min_time=1e-5)
    x, _ = solve(jax.random.key(2), sampler, data.score, VP(), measurement)
    np.testing.assert_allclose((x @ basis)[:, :3], (x0 @ basis)[:, :3], atol=1e-4)
    assert jnp.abs((x @ basis)[:, 3:] - (x0 @ basis)[:, 3:]).mean() > 0.2


def test_any_linear_measurement():
    """Three rows, the third of them the sum of the others: rank two in 8 dimensions."""
    data = Gaussian(VP(), mean=0.1)
    rows = np.random.default_rng(0).standard_normal((2, 8))
    matrix = np.concatenate([rows, rows.sum(0, keepdims=True)])
    x0 = jax.random.normal(jax.random.key(1), (4096, 2, 2, 2))
    values = x0.reshape(-1, 8) @ jnp.float32(matrix.T)
    measurement = linear(values, matrix, (2, 2, 2))
    assert measurement.mask.sum() == 2
    np.testing.assert_allclose(
        measurement.inverse(measurement.transform(x0)), x0, atol=1e-5
    )
    sampler = PredictorCorrector(num_steps=200, min_time=1e-5)
    run = jax.jit(lambda rng: solve(rng, sampler, data.score, VP(), measurement))
    x = run(jax.random.key(2))[0].reshape(-1, 8)
    np.testing.assert_allclose(x @ jnp.float32(matrix.T), values, atol=1e-3)
    # What the rows leave open is the data's own Gaussian, in 6 of 8 dimensions.
    basis = np.linalg.svd(rows)[2][2:]
    free = x @ jnp.float32(basis.T)
    np.testing.assert_allclose(free.var(axis=0), data.std**2, rtol=0.1)
    np.testing.assert_allclose(free.mean(axis=0), 0.1 * basis.sum(1), atol=0.04)


def test_low_resolution_keeps_the_means():
    data = Gaussian(VP(), mean=0.1)
    image = jax.random.uniform(jax.random.key(1), (16, 4, 6, 3), minval=-1.0)
    sampler = PredictorCorrector(num_steps=50, min_time=1e-5)
    measurement = low_resolution(image, factor=2)
    x, _ = solve(jax.random.key(0), sampler, data.score, VP(), measurement)

    def means(x):
        return x.reshape(16, 2, 2, 3, 2, 3).mean((2, 4))

    np.testing.assert_allclose(means(x), means(image), atol=1e-4)
    assert jnp.abs(x - image).mean() > 0.2


def test_what_cannot_be_done_is_told():
    with pytest.raises(UserError, match="columns does not take"):
        linear(jnp.zeros((2, 1)), np.ones((1, 5)), (2, 2))
    with pytest.raises(UserError, match="zeros"):
        linear(jnp.zeros((2, 1)), np.zeros((1, 4)), (2, 2))
    with pytest.raises(UserError, match="4x6 cannot be tiled by squares of 4"):
        low_resolution(jnp.zeros((2, 4, 6, 1)), factor=4)
    with pytest.raises(UserError, match="3 channels, got 1"):
        colourization(jnp.zeros((2, 4, 4, 1)))
    measurement = inpainting(jnp.zeros((2, 4, 4, 1)), jnp.ones((4, 4)))
    with pytest.raises(UserError, match="lacks"):
        solve(
            jax.random.key(0),
            replace(SAMPLER, predictor=None),
            score,
            VP(),
            measurement,
        )
