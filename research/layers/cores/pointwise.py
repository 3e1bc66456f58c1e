"""Attention by an elementwise function in place of the softmax."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.cores.base import SEES_ALL, Bias, Mask, remember
from research.layers.cores.counts import Count, count_seen, seen_keys
from research.layers.dropout import Dropout

Scaling = Callable[[int, Array | float], Array | float]
"""A factor, from the head dimension and the number of keys."""


def per_root_dim(head_dim: int, num_keys: Array | float) -> Array | float:
    """1/sqrt(head dim): the variance of products of unit queries and keys is one."""
    return 1 / math.sqrt(head_dim)


def per_key(head_dim: int, num_keys: Array | float) -> Array | float:
    """1/keys: a sum over the keys becomes their mean."""
    return 1 / num_keys


def unchanged(head_dim: int, num_keys: Array | float) -> Array | float:
    """1."""
    return 1.0


def squared_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0)^2 (So et al. 2021, arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


def laplace(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A normal distribution's cumulative function that is near ReLU^2 up to one.

    Mean sqrt(1/2), variance 1/(4 pi), which give it ReLU^2's value and slope at
    sqrt(1/2): bounded, so more stable (Ma et al. 2022, arXiv:2209.10655).
    """
    return jax.scipy.stats.norm.cdf(x, math.sqrt(0.5), math.sqrt(1 / (4 * math.pi)))


class Pointwise(nn.Module):
    """outside * activation(inside * q k + bias) v; what is not seen has no weight.

    As it stands, the attention of gated attention units (Hua et al. 2022,
    arXiv:2202.10447): ReLU^2(q k / sqrt(dim) + bias) / keys. The paper's pseudocode has
    `inside=per_key, outside=unchanged` instead: weights of order 1/keys^2. Computed in
    float32. A query that sees no key gets zeros.

    Differs: a mean is over the keys that a query sees; the paper's pseudocode divides
    by the length also where there is padding or a causal mask (here `count=all_keys`),
    so that an output would depend on how much follows it.

    Attributes:
      activation: of the logits, elementwise.
      inside: multiplies products of queries and keys.
      outside: multiplies what the activation gives.
      count: the number of keys for both.
      dropout_rate: of the weights, in training.
    """

    activation: Callable[[Array], Array] = squared_relu
    inside: Scaling = per_root_dim
    outside: Scaling = per_key
    count: Count = seen_keys
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch queries heads dim"],
        key: Float[Array, "batch keys kv_heads dim"],
        value: Float[Array, "batch keys kv_heads value_dim"],
        *,
        mask: Mask = SEES_ALL,
        bias: Bias | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch queries heads value_dim"]:
        if decode:
            key, value, mask = remember(self, key, value, mask)
        num_queries, num_keys, dim = query.shape[1], key.shape[1], query.shape[-1]
        seen = count_seen(mask, num_queries, num_keys)[:, None, None, :, None]
        count = jnp.maximum(self.count(seen, num_keys), 1)

        groups = query.reshape(*query.shape[:2], key.shape[2], -1, dim)
        logits = jnp.einsum(
            "bqhgd,bkhd->bhgqk", groups, key, preferred_element_type=jnp.float32
        )
        logits = self.inside(dim, count) * logits
        if bias is not None:
            added = bias(*mask.positions(num_queries, num_keys))
            logits += added.reshape(1, *logits.shape[1:3], *added.shape[1:])
        weights = self.outside(dim, count) * self.activation(logits)
        dense = mask.dense(num_queries, num_keys)
        if dense is not None:
            weights = jnp.where(dense[:, :, None], weights, 0)
        weights = weights.astype(value.dtype)
        weights = Dropout(self.dropout_rate, name="dropout")(weights, train)
        out = jnp.einsum("bhgqk,bkhd->bqhgd", weights, value)
        return out.reshape(*query.shape[:3], -1)
