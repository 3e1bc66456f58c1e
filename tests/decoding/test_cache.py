"""Flax's caches as states: shapes, and which axis of which leaf holds the rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding.cache import empty_cache, take_cache_rows, with_context


class Layer(nn.Module):
    """Remembers its inputs, a count, and a context."""

    @nn.compact
    def __call__(self, x, context):
        self.variable("cache", "key", lambda: x + 1)
        self.variable("cache", "index", jnp.ones, (), jnp.int32)
        self.variable("cache", "context_key", lambda: context + 1)
        return x, None


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, context):
        self.variable("cache", "position", jnp.ones, (), jnp.int32)
        self.variable("cache", "last", lambda: x[:, 0])
        self.param("kernel", nn.initializers.ones, (3,))
        scanned = nn.scan(
            Layer,
            variable_axes={True: 0},
            split_rngs={True: True},
            in_axes=nn.broadcast,
            length=4,
        )
        return scanned(name="layers")(x, context)


ROWS = 2


def init():
    x, context = jnp.ones((ROWS, 3, 5)), jnp.ones((ROWS, 6))
    return Model().init(jax.random.key(0), x, context)


@pytest.fixture
def cache():
    """Every number is another one."""
    leaves, tree = jax.tree.flatten(empty_cache(init))
    sizes = np.cumsum([0, *(leaf.size for leaf in leaves)])
    filled = [
        jnp.arange(start, start + leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
        for start, leaf in zip(sizes, leaves, strict=False)
    ]
    return jax.tree.unflatten(tree, filled)


def test_an_empty_cache_is_that_of_init_but_zero():
    empty, there = empty_cache(init), init()["cache"]
    assert jax.tree.structure(empty) == jax.tree.structure(there)
    for ours, theirs in zip(
        jax.tree.leaves(empty), jax.tree.leaves(there), strict=True
    ):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert not ours.any() and theirs.any()
    assert empty["layers"]["key"].shape == (4, ROWS, 3, 5)
    assert empty_cache(lambda: {"params": {}}) == {}


def test_rows_are_behind_the_layers(cache):
    index = jnp.array([1, 1])
    taken = take_cache_rows(cache, index)
    np.testing.assert_array_equal(taken["last"], cache["last"][index])
    layers, before = taken["layers"], cache["layers"]
    np.testing.assert_array_equal(layers["key"], before["key"][:, index])
    # Counters are of all rows, and beams share their source.
    np.testing.assert_array_equal(taken["position"], cache["position"])
    np.testing.assert_array_equal(layers["index"], before["index"])
    np.testing.assert_array_equal(layers["context_key"], before["context_key"])


def test_each_row_becomes_several_hypotheses(cache):
    """The source's too, whether in the cache or beside it."""
    index = jnp.repeat(jnp.arange(ROWS), 3)
    state = {"cache": cache, "context_valid": jnp.arange(ROWS * 6).reshape(ROWS, 6)}
    taken = jax.jit(take_cache_rows)(state, index)
    layers, before = taken["cache"]["layers"], cache["layers"]
    for name in ("key", "context_key"):
        np.testing.assert_array_equal(layers[name], before[name][:, index])
    np.testing.assert_array_equal(taken["context_valid"], state["context_valid"][index])
    assert layers["index"].shape == (4,) and taken["cache"]["position"].shape == ()


def test_only_the_source_is_taken_over(cache):
    primed = jax.tree.map(lambda leaf: leaf + 100, cache)
    merged = with_context(cache, primed)
    expected = jax.tree.map(lambda leaf: leaf, cache)
    expected["layers"]["context_key"] = primed["layers"]["context_key"]
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
