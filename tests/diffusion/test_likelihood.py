import jax
import jax.numpy as jnp
import numpy as np
from gaussian import Gaussian
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from research.diffusion.likelihood import decode, encode, log_likelihood
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP

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
