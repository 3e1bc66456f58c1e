from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from research.layers.embeddings import (
    FourierEmbedding,
    LevelEmbedding,
    SinusoidalEmbedding,
    log_logistic_mixture,
)
from research.layers.positions import Sinusoidal
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


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_levels_have_the_mass_around_them():
    """The definition, in float64; and all of it, however narrow or far off."""
    draws = np.random.default_rng(0)
    weights, means = draws.normal(size=(2, 3, 4))
    log_scales = draws.normal(size=(3, 4)) - 2
    given = (weights, means, log_scales)
    ours = log_logistic_mixture(*map(jnp.asarray, given), 16)
    shares = np.exp(weights) / np.exp(weights).sum(-1, keepdims=True)
    edges = (np.arange(1, 16) - 8) / 7.5  # between the levels
    below = sigmoid(
        (edges[None, None] - means[..., None]) / np.exp(log_scales)[..., None]
    )
    below = np.pad(below, ((0, 0), (0, 0), (1, 1)), constant_values=(0, 1))
    expected = (shares[..., None] * np.diff(below)).sum(1)
    np.testing.assert_allclose(np.exp(ours), expected, rtol=1e-4, atol=1e-7)

    extreme = jnp.array([[-50.0], [-3.0], [0.0], [3.0], [1.0]])
    narrow = jnp.array([[-20.0], [-7.0], [0.0], [5.0], [30.0]])
    of_extreme = log_logistic_mixture(jnp.zeros((5, 1)), extreme, narrow, 256)
    assert np.isfinite(of_extreme).all()
    np.testing.assert_allclose(np.exp(of_extreme).sum(-1), 1, rtol=1e-4)
    assert (np.argmax(of_extreme, -1)[:2] == 0).all()


def test_levels_and_positions_lie_side_by_side():
    embedding = LevelEmbedding(8, num_levels=5, num_mixtures=2)
    tokens = jnp.array([[4, 8, 3]])

    def both(module, tokens):
        x = module(tokens)
        return x, module.attend(x)

    there_and_back = SimpleNamespace(init=partial(embedding.init, method=both))
    params = slow.random_params(there_and_back, tokens)
    assert params["embedding"].shape == (9, 4) and embedding.vocab_size == 9
    run = slow.jit(lambda p: embedding.apply({"params": p}, tokens, method=both))
    x, logits = run(params)
    np.testing.assert_array_equal(x[0, :, :4], params["embedding"][tokens[0]])
    np.testing.assert_allclose(
        x[..., 4:], Sinusoidal()(jnp.arange(3)[None], 4), atol=1e-6
    )
    assert logits.shape == (1, 3, 9) and (logits[..., :4] < -1e29).all()
    mixture = slow.dense(params["mixture"], np.asarray(x)).reshape(1, 3, 3, 2)
    parts = [jnp.asarray(mixture[:, :, i]) for i in range(3)]
    np.testing.assert_allclose(
        logits[..., 4:], log_logistic_mixture(*parts, 5), atol=1e-4
    )
