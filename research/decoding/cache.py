"""Flax's `cache` collection as the state of decoding.

Its leaves under a stack's `layers` have the layer axis in front, the others the rows.
`index` and `position` count for all rows; `context_*` is of the source, which all
hypotheses of a row share.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Cache = Any
"""The collection: a tree of arrays."""


def empty_cache(init: Callable[[], Any]) -> Cache:
    """The cache before the first token, all zeros.

    Args:
      init: initialises a model with `decode=True` on inputs as long as the longest text
        to be decoded; only shapes are computed.
    """
    shapes = jax.eval_shape(init).get("cache", {})
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def take_cache_rows(cache: Cache, index: Int[Array, "chosen"]) -> Cache:
    """The cache of other rows; see `research.decoding.prompts.Reorder`.

    Rows of a source are only taken where their number changes: within a search they are
    the same for all hypotheses of a prompt.
    """

    def take(path: Any, leaf: Array) -> Array:
        names = [getattr(key, "key", "") for key in path]
        if names[-1] in ("index", "position"):
            return leaf
        axis = 1 if "layers" in names else 0
        same = leaf.shape[axis] == len(index)
        if names[-1].startswith("context_") and same:
            return leaf
        return jnp.take(leaf, index, axis=axis)

    return jax.tree_util.tree_map_with_path(take, cache)


def with_context(cache: Cache, primed: Cache) -> Cache:
    """`cache` with what `primed`, after a first step, knows of the source."""

    def choose(path: Any, old: Array, new: Array) -> Array:
        return new if path[-1].key.startswith("context_") else old

    return jax.tree_util.tree_map_with_path(choose, cache, primed)
