"""What sums over keys are divided by."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.cores.base import Mask

Count = Callable[[Float[Array, "..."], int], Array | float]
"""The divisor, from how many keys each query sees and how many there are."""


def seen_keys(seen: Float[Array, "..."], num_keys: int) -> Array | float:
    """Neither padding, nor other segments, nor, if causal, what comes later."""
    return seen


def all_keys(seen: Float[Array, "..."], num_keys: int) -> Array | float:
    """Padding and the unseen too."""
    return float(num_keys)


@dataclass(frozen=True)
class Fixed:
    """As many whatever the length, so that weights do not shrink beyond it."""

    num_keys: int

    def __call__(self, seen: Float[Array, "..."], num_keys: int) -> Array | float:
        return float(self.num_keys)


def count_seen(
    mask: Mask, num_queries: int, num_keys: int
) -> Float[Array, "batch queries"]:
    """How many keys each query sees; the batch is 1 where rows agree."""
    if mask.valid is None and mask.segments is None:
        if not mask.causal:
            return jnp.full((1, num_queries), num_keys, jnp.float32)
        queries, _ = mask.positions(num_queries, num_keys)
        return (queries + 1).astype(jnp.float32)[None]
    seen = mask.dense(num_queries, num_keys)
    assert seen is not None
    return seen.sum(-1, dtype=jnp.float32)[:, 0]
