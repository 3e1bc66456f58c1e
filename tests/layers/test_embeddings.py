import jax
import jax.numpy as jnp
import numpy as np

from research.layers.embeddings import FourierEmbedding, SinusoidalEmbedding
from tests.layers import slow


def test_slow_formula():
    t = [0.0, 1e-5, 0.3, 1.0]
    ours = SinusoidalEmbedding(8).apply({}, jnp.array(t))
    for row, time in zip(np.asarray(ours), t, strict=True):
        for i in range(4):
            # Four frequencies from 1 to 1/10000, both ends included.
            angle = 999 * np.float32(time) * 10_000.0 ** (-i / 3)
            np.testing.assert_allclose(row[i], np.sin(angle), atol=1e-4)
            np.testing.assert_allclose(row[4 + i], np.cos(angle), atol=1e-4)


def test_other_orders_of_waves_and_frequencies():
    t = jnp.array([0.3, 1.0])
    ours = SinusoidalEmbedding(8, endpoint=False, cosines_first=True).apply({}, t)
    for row, time in zip(np.asarray(ours), np.asarray(t), strict=True):
        for i in range(4):
            angle = 999 * time * 10_000.0 ** (-i / 4)
            np.testing.assert_allclose(row[i], np.cos(angle), atol=1e-4)
            np.testing.assert_allclose(row[4 + i], np.sin(angle), atol=1e-4)


def test_fourier_slow_formula():
    t = [-4.6, 0.0, 3.9]
    params = {"frequencies": jnp.array([0.3, -12.5, 30.0])}
    ours = slow.apply(FourierEmbedding(3), params, jnp.array(t))
    for row, time in zip(np.asarray(ours), t, strict=True):
        for i, frequency in enumerate([0.3, -12.5, 30.0]):
            angle = 2 * np.pi * frequency * np.float32(time)
            np.testing.assert_allclose(row[i], np.sin(angle), atol=1e-3)
            np.testing.assert_allclose(row[3 + i], np.cos(angle), atol=1e-3)


def test_fourier_frequencies_are_drawn_and_fixed():
    embedding = FourierEmbedding(4000)
    t = jnp.array([0.5])
    params = slow.jit(embedding.init)(slow.key(0), t)["params"]
    assert abs(params["frequencies"].std() - 16) < 1
    assert abs(params["frequencies"].mean()) < 1

    def total(params, t):
        return embedding.apply({"params": params}, t).sum()

    of_params, of_t = slow.jit(jax.grad(total, argnums=(0, 1)))(params, t)
    assert (of_params["frequencies"] == 0).all()
    assert (of_t != 0).all()
