from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.cores import (
    Generalized,
    Mask,
    Performer,
    Positive,
    Softmax,
    Trigonometric,
    constant,
    independent,
    orthogonal,
)
from tests.layers import slow
from tests.layers.cores import contract

W = np.random.default_rng(1).normal(size=(12, 8))
VARIABLES = {"features": {"projection": jnp.asarray(W, jnp.float32)}}
KERNELS = [Positive(floor=1e-2), Positive(floor=0.0), Trigonometric(), Generalized()]


def official(features, query, key, keys):
    """The features of a query and of the keys it sees, as the official code has them.

    `keys` says which these are.
    """
    query, key = np.float64(query), np.float64(key)[keys]
    if isinstance(features, Generalized):
        return np.maximum(W @ query, 0) + 1e-3, np.maximum(key @ W.T, 0) + 1e-3
    query, key = query / 8**0.25, key / 8**0.25
    if isinstance(features, Trigonometric):
        waves = [np.concatenate([np.cos(W @ x), np.sin(W @ x)]) for x in key]
        length = np.exp((key**2).sum(-1) / 2)
        of_query = np.concatenate([np.cos(W @ query), np.sin(W @ query)])
        return of_query, np.stack(waves) * length[:, None]
    of_query = np.exp(W @ query - query @ query / 2 - (W @ query).max())
    of_keys = key @ W.T
    of_keys = np.exp(of_keys - (key**2).sum(-1)[:, None] / 2 - of_keys.max())
    return of_query + features.floor, of_keys + features.floor


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("features", KERNELS, ids=lambda f: f"{f}"[:14])
def test_slow_formula(features, causal):
    query, key, value = contract.arrays()
    masks = contract.masks(causal)
    del masks["padded"], masks["packed"]
    core = Performer(12, features, chunk_size=4)
    outputs = contract.run_all(core, [query, key, value], masks, VARIABLES)
    for name, mask in masks.items():
        seen = mask.dense(17, 17)
        seen = np.ones((1, 1, 17, 17)) if seen is None else np.asarray(seen)
        seen = np.broadcast_to(seen, (2, 1, 17, 17)).astype(bool)
        expected = np.zeros((2, 17, 4, 5))
        for row, position, head in np.ndindex(2, 17, 4):
            keys = seen[row, 0, position]
            if keys.any():
                of_query, of_keys = official(
                    features, query[row, position, head], key[row, :, head // 2], keys
                )
                weights = of_keys @ of_query
                values = np.float64(value[row, keys, head // 2])
                expected[row, position, head] = weights @ values / weights.sum()
        tolerance = 1e-5 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(
            outputs[name], expected, atol=tolerance, err_msg=name
        )


def test_a_floor_of_a_size_that_shows():
    query, key, value = contract.arrays()
    mask = contract.masks(causal=True)["both"]
    outputs = [
        contract.run(
            Performer(12, Positive(floor)), [query, key, value], mask, VARIABLES
        )
        for floor in (0.0, 1e-6, 1e-2)
    ]
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 1e-3
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-2


@pytest.mark.parametrize("features", KERNELS[:1] + KERNELS[2:], ids=["+", "~", "relu"])
def test_decodes_as_it_trains(features):
    core = Performer(12, features, chunk_size=4)
    inputs = contract.arrays()
    cache = contract.check_decodes(
        core,
        VARIABLES,
        inputs,
        padded=True,
        atol=1e-4 if features == KERNELS[2] else 1e-5,
    )
    assert max(leaf.size for leaf in cache.values()) <= 2 * 2 * 24 * 5


def test_is_causal_and_finite():
    core = Performer(12, chunk_size=4)
    contract.check_causal(core, VARIABLES)
    contract.check_finite(core, VARIABLES)
    contract.check_bfloat16(core, VARIABLES)
    contract.check_finite(Performer(12), VARIABLES, causal=False)


def test_one_key_is_all_there_is_to_see():
    # Of 64 dimensions: the sum of its features is below the official code's 1e-6.
    draws = np.random.default_rng(0)
    query, key, value = jnp.asarray(draws.normal(size=(3, 1, 1, 1, 64)), jnp.float32)
    variables = {"features": {"projection": jnp.asarray(draws.normal(size=(9, 64)))}}
    out = contract.run(
        Performer(9), [3 * query, 3 * key, value], Mask(causal=True), variables
    )
    np.testing.assert_allclose(out, value, rtol=1e-5)


def kernel_errors(features, draw, num_features, num_draws=4000):
    """Of a kernel's estimate: root mean square and mean over draws."""
    query, key, _ = contract.arrays(6, 6, heads=1, kv_heads=1)
    query, key = query[:1] / 2, key[:1] / 2
    kernel = jnp.exp(jnp.einsum("bqhd,bkhd->qk", query, key) / 8**0.5)

    def one(rng):
        projection = draw(rng, num_features, 8)
        queries, keys = features(query, projection), features(key, projection)
        estimate = jnp.einsum("bqhr,bkhr->qk", queries.values, keys.values)
        scale = queries.log_scale[0] + keys.log_scale[0].T
        return estimate * jnp.exp(scale) - kernel

    found = slow.jit(jax.vmap(one))(jax.random.split(slow.key(0), num_draws))
    return np.sqrt((found**2).mean()), np.abs(found.mean(0)).mean()


@pytest.mark.parametrize("features", [Positive(0.0), Trigonometric()], ids=["+", "~"])
def test_estimates_the_kernel(features):
    few, many = (kernel_errors(features, independent, m) for m in (16, 64))
    assert 1.8 < few[0] / many[0] < 2.2  # as 1 / sqrt(features)
    assert many[1] < 3 * many[0] / 4000**0.5  # without bias


def test_estimates_attention():
    query, key, value = contract.arrays(6, 6)
    query, key = 0.35 * query, 0.35 * key
    exact = Softmax().apply({}, query, key, value)

    def error(num_features):
        core = Performer(num_features, Positive(0.0), redraw=True)
        variables = {"features": {"projection": jnp.zeros((num_features, 8))}}

        def one(rng):
            return core.apply(
                variables, query, key, value, train=True, rngs={"features": rng}
            )

        outputs = slow.jit(jax.vmap(one))(jax.random.split(slow.key(0), 200))
        return np.sqrt(((outputs - exact[None]) ** 2).mean())

    assert 1.7 < error(64) / error(256) < 2.3


def test_orthogonal_features_vary_less():
    positive = Positive(floor=0.0)
    of_independent = kernel_errors(positive, independent, 8)
    of_orthogonal = kernel_errors(positive, orthogonal, 8)
    assert of_orthogonal[0] < 0.95 * of_independent[0]
    assert of_orthogonal[1] < 3 * of_orthogonal[0] / 4000**0.5  # without bias
    of_constant = kernel_errors(positive, partial(orthogonal, norms=constant), 8)
    assert of_constant[0] < 0.8 * of_orthogonal[0]


def test_orthogonal_blocks():
    drawn = orthogonal(slow.key(0), 20, 8)
    directions = drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)
    products = directions @ directions.T
    for block in (slice(0, 8), slice(8, 16), slice(16, 20)):
        np.testing.assert_allclose(
            products[block, block], np.eye(len(drawn[block])), atol=1e-5
        )
    assert np.abs(products[:8, 8:16]).max() > 0.1
    lengths = jax.vmap(lambda key: jnp.linalg.norm(orthogonal(key, 8, 8), axis=-1))(
        jax.random.split(slow.key(0), 500)
    )
    np.testing.assert_allclose((lengths**2).mean(), 8, rtol=0.05)
    np.testing.assert_allclose((lengths**2).var(), 16, rtol=0.15)
    # No coordinate has a sign of its own.
    first = jax.vmap(lambda key: orthogonal(key, 8, 8))(
        jax.random.split(slow.key(1), 500)
    )
    assert np.abs((first > 0).mean(0) - 0.5).max() < 0.1
    fixed = orthogonal(slow.key(0), 8, 8, norms=constant)
    np.testing.assert_allclose(fixed @ fixed.T, 8 * np.eye(8), atol=1e-4)


def test_redraws_in_training():
    inputs = contract.arrays()
    core = Performer(12)
    variables = core.init(slow.key(0), *inputs)
    assert set(variables) == {"features"}
    assert variables["features"]["projection"].shape == (12, 8)

    def run(core, seed, train):
        rngs = {"features": slow.key(seed)}
        return core.apply(variables, *inputs, train=train, rngs=rngs)

    fixed = Performer(12, redraw=False)
    first, second, again, third, kept = slow.jit(
        lambda: (
            run(core, 1, False),
            run(core, 1, True),
            run(core, 1, True),
            run(core, 2, True),
            run(fixed, 1, True),
        )
    )()
    np.testing.assert_array_equal(second, again)
    for one, other in [(first, second), (second, third)]:
        assert np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(first, kept)


def test_no_bias():
    with pytest.raises(UserError, match="no logits to add a bias to"):
        bias = lambda q, k: jnp.zeros((4, 17, 17))  # noqa: E731
        Performer(12).apply(VARIABLES, *contract.arrays(), bias=bias)
