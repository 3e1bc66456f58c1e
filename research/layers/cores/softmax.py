"""Softmax attention."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.cores.base import SEES_ALL, Bias, Mask, remember
from research.layers.dropout import Dropout

Scale = Callable[[int], float]
"""What logits are multiplied by, for a head dimension."""


def inverse_sqrt(head_dim: int) -> float:
    """1/sqrt(head dim): the variance of logits of unit queries and keys is one."""
    return 1 / math.sqrt(head_dim)


def inverse(head_dim: int) -> float:
    """1/head dim: of muP (Yang et al. 2022, arXiv:2203.03466), for correlated ones."""
    return 1 / head_dim


def unscaled(head_dim: int) -> float:
    """1: the scale is in the query's initialisation (Raffel et al. 2020, T5)."""
    return 1.0


class Softmax(nn.Module):
    """softmax(scale q k + bias) v, the softmax in float32.

    Vaswani et al. 2017, arXiv:1706.03762, Eq. 1. A query that sees no key gets zeros.

    Attributes:
      scale: of the logits.
      dropout_rate: of the weights, in training.
    """

    scale: Scale = inverse_sqrt
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
        num_queries, num_keys = query.shape[1], key.shape[1]
        seen = mask.dense(num_queries, num_keys)
        scale = self.scale(query.shape[-1])
        added = None
        if bias is not None:
            added = bias(*mask.positions(num_queries, num_keys))[None]
        drops = train and self.dropout_rate > 0
        if not drops and query.shape[-1] == value.shape[-1]:
            out = jax.nn.dot_product_attention(
                query, key, value, bias=added, mask=seen, scale=scale
            )
        else:
            groups = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[-1])
            logits = jnp.einsum(
                "bqhgd,bkhd->bhgqk", groups, key, preferred_element_type=jnp.float32
            )
            logits = scale * logits
            if added is not None:
                logits += added.reshape(1, *logits.shape[1:3], *added.shape[2:])
            if seen is not None:
                logits = jnp.where(seen[:, :, None], logits, -1e30)
            weights = jax.nn.softmax(logits).astype(value.dtype)
            weights = Dropout(self.dropout_rate, name="dropout")(weights, train)
            out = jnp.einsum("bhgqk,bkhd->bqhgd", weights, value)
            out = out.reshape(*query.shape[:3], -1)
        if seen is None:
            return out
        # A row of padding: any finite number will do, and zero spreads nothing.
        return jnp.where(seen.any(-1)[:, 0, :, None, None], out, 0)
