import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.residual import PreNorm, ResPostNorm
from tests.layers import slow

X = jax.random.normal(jax.random.key(0), (64, 3, 8))


def branch(x):
    return 3 * x + jnp.arange(8.0)[None, None]


def norm(params, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * np.float64(params["scale"]) + np.float64(params["bias"])


def run(module, params, rng=None):
    rngs = {} if rng is None else {"dropout": rng}
    apply = lambda p: module.apply({"params": p}, X, branch, rng is not None, rngs=rngs)  # noqa: E731
    return np.asarray(slow.jit(apply)(params))


@pytest.mark.parametrize("kind", [PreNorm, ResPostNorm])
def test_where_the_norm_is(kind):
    module = kind()
    params = slow.random_params(module, X, branch)
    x, scaled = np.float64(X), lambda h: norm(params["norm"], np.float64(h))
    added = branch(scaled(x)) if kind is PreNorm else scaled(branch(x))
    expected = x + np.float64(added)
    np.testing.assert_allclose(run(module, params), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [PreNorm, ResPostNorm])
def test_examples_pass_the_branch_by(kind):
    """All of an example or none; the bias of a norm after the branch goes with it."""
    module = kind(drop_path_rate=0.5)
    params = slow.random_params(module, X, branch)
    added = run(module, params) - X
    there = run(module, params, jax.random.key(0)) - X
    dropped = np.abs(there).max((1, 2)) == 0
    assert 15 < dropped.sum() < 49
    np.testing.assert_allclose(there[~dropped], 2 * added[~dropped], atol=1e-4)


def test_norm_after_the_branch_starts_at_zero():
    params = ResPostNorm().init(slow.key(0), X, branch)["params"]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(params))
