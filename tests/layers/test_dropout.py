from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.dropout import Dropout, StochasticDepth


@partial(jax.jit, static_argnums=0)
def drop(rate, x, seed=0):
    return Dropout(rate).apply(
        {}, x, train=True, rngs={"dropout": jax.random.key(seed)}
    )


def test_nothing_happens_outside_training():
    x = jnp.ones((4, 3))
    assert (Dropout(0.5).apply({}, x, train=False) == x).all()
    assert (Dropout(0.0).apply({}, x, train=True) == x).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_mean(rate):
    y = np.asarray(drop(rate, jnp.ones((100, 10, 101))))
    # Four standard deviations of a fraction of 101,000 draws.
    deviation = 4 * (rate * (1 - rate) / y.size) ** 0.5
    assert abs((y == 0).mean() - rate) < deviation
    assert abs(y.mean() - 1) < deviation / (1 - rate)
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=1e-3)


def test_elements_are_independent():
    kept = np.asarray(drop(0.5, jnp.ones((1000, 64)))) > 0
    correlation = np.corrcoef(kept.T) - np.eye(64)
    assert np.abs(correlation).max() < 5 / 1000**0.5
    assert (drop(0.5, jnp.ones((10, 10))) != drop(0.5, jnp.ones((10, 10)), 1)).any()


def test_gradient_is_dropped_alike():
    x = jnp.ones((10, 7))
    gradient = jax.grad(lambda x: drop(0.3, x).sum())(x)
    np.testing.assert_array_equal(gradient, drop(0.3, x))


def test_keeps_the_dtype():
    assert drop(0.1, jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.bfloat16


def test_whole_examples():
    x = jnp.ones((4000, 2, 3))

    @partial(jax.jit, static_argnums=0)
    def drop_path(rate, train=True):
        rngs = {"dropout": jax.random.key(0)}
        return StochasticDepth(rate).apply({}, x, train=train, rngs=rngs)

    y = np.asarray(drop_path(0.2))
    kept = (y > 0).all((1, 2))
    assert (kept | (y == 0).all((1, 2))).all()
    assert abs(kept.mean() - 0.8) < 4 * (0.8 * 0.2 / 4000) ** 0.5
    np.testing.assert_allclose(y[kept], 1 / 0.8, rtol=1e-6)
    assert (StochasticDepth(0.2).apply({}, x, train=False) == x).all()
    assert (drop_path(0.0) == x).all()
