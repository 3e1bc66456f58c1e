import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from research.diffusion.likelihood import (
    decode,
    encode,
    interpolate,
    log_likelihood,
)
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VE, VP, SubVP

# A small mean: the prior has none, and what is left of it at t = 1 enters the result.
DATA = Gaussian(VP(), mean=0.1)
SHAPE = (64, 4, 4, 3)


def run(x, **options):
    return log_likelihood(jax.random.key(1), DATA.score, DATA.process, x, **options)


def test_likelihood_of_a_gaussian_to_a_thousandth_of_a_bit_per_dim():
    x = DATA.draw(jax.random.key(0), SHAPE, 0.0)
    nats, latents, evaluations = jax.jit(run)(x)
    expected = stats.norm(DATA.mean, DATA.std).logpdf(x).sum(axis=(1, 2, 3))
    bits = Pixels().bits_per_dim(nats, 48)
    expected_bits = 7 - expected / (48 * np.log(2))
    np.testing.assert_allclose(bits, expected_bits, atol=1e-3)
    # The latents are the data's place in the prior: the same number of deviations.
    np.testing.assert_allclose(latents, (x - DATA.mean) / DATA.std, atol=2e-3)
    assert 20 < evaluations < 200


@pytest.mark.parametrize("process", [VE(0.01, 20.0), SubVP()], ids=str)
def test_likelihood_by_any_process(process):
    data = Gaussian(process, mean=0.1)
    x = data.draw(jax.random.key(0), SHAPE, 1e-5)
    nats, _, _ = jax.jit(
        lambda x: log_likelihood(jax.random.key(1), data.score, process, x)
    )(x)
    (mean, end_mean), (std, end_std) = data.moments(jnp.array([1e-5, 1.0]))
    latents = (x - mean) / std * end_std + end_mean

    def log_density(x, mean, std):
        return stats.norm(mean, std).logpdf(x).sum(axis=(1, 2, 3))

    # The prior stands for the density at t = 1, which has the data's own moments too.
    expected = log_density(x, mean, std)
    expected += process.log_prior(latents) - log_density(latents, end_mean, end_std)
    np.testing.assert_allclose((nats - expected) / (48 * np.log(2)), 0, atol=1e-4)


def test_interpolation_stays_on_the_sphere():
    first, second = jax.random.normal(jax.random.key(0), (2, 5, 4))
    first, second = first / jnp.linalg.norm(first), second / jnp.linalg.norm(second)
    path = interpolate(first, second, 5)
    np.testing.assert_allclose(path[0], first, atol=1e-6)
    np.testing.assert_allclose(path[-1], second, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(path, axis=(1, 2)), 1, rtol=1e-5)
    steps = jnp.linalg.norm(jnp.diff(path, axis=0), axis=(1, 2))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


def test_interpolation_of_parallel_latents_is_straight():
    latent = jax.random.normal(jax.random.key(0), (3, 2))
    path = interpolate(latent, 2 * latent, 3)
    np.testing.assert_allclose(
        path, jnp.stack([latent, 1.5 * latent, 2 * latent]), 1e-5
    )


def test_probes_estimate_the_divergence_without_bias():
    """Correlated dimensions: probes see the off-diagonal, 4 halve the deviation."""
    process = VP()
    covariance = jnp.array([[0.5, 0.3], [0.3, 0.4]])
    point = np.array([0.4, -0.2])

    def score(x, t):
        signal, std = process.marginal(jnp.ones_like(t), t)
        inverse = jax.vmap(
            lambda a, s: jnp.linalg.inv(a**2 * covariance + s**2 * jnp.eye(2))
        )(signal, std)
        return -jnp.einsum("bij,bj->bi", inverse, x)

    expected = stats.multivariate_normal(np.zeros(2), covariance).logpdf(point)
    x = jnp.broadcast_to(jnp.asarray(point, jnp.float32), (1024, 2))
    deviations = []
    for num_probes in (1, 4):
        nats, _, _ = jax.jit(
            lambda rng, n=num_probes: log_likelihood(
                rng, score, process, x, num_probes=n
            )
        )(jax.random.key(0))
        deviations.append(float(nats.std()))
        standard_error = deviations[-1] / np.sqrt(1024)
        assert abs(nats.mean() - expected) < 4 * standard_error
    assert deviations[0] > 0.1
    np.testing.assert_allclose(deviations[0] / deviations[1], 2, rtol=0.15)


def test_decode_inverts_encode():
    x = DATA.draw(jax.random.key(0), SHAPE, 0.0)
    latents, _ = jax.jit(lambda x: encode(DATA.score, DATA.process, x))(x)
    np.testing.assert_allclose(latents, (x - DATA.mean) / DATA.std, atol=2e-3)
    back, _ = jax.jit(lambda z: decode(DATA.score, DATA.process, z))(latents)
    np.testing.assert_allclose(back, x, atol=1e-3)


def test_likelihood_does_not_depend_on_the_number_of_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = DATA.draw(jax.random.key(0), SHAPE, 0.0)
    expected, _, expected_evaluations = jax.jit(run)(x)
    nats, latents, evaluations = jax.jit(run, in_shardings=rows)(
        jax.device_put(x, rows)
    )
    assert latents.sharding.is_equivalent_to(rows, latents.ndim)
    np.testing.assert_allclose(nats, expected, atol=1e-2)
    assert evaluations == expected_evaluations
