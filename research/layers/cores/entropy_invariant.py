"""Logits that grow with the logarithm of the length."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.cores.base import SEES_ALL, Bias, Core, HasCore, Mask
from research.layers.cores.counts import count_seen
from research.layers.cores.softmax import Softmax


class EntropyInvariant(HasCore):
    """Another core, its products of queries and keys times log(keys) / log(base).

    Su 2021, kexue.fm/archives/8823: the entropy of a softmax's weights then hardly
    depends on the number of keys that a query sees, and a model trained at one length
    works better at others. At `base` keys it is the other core. With `least=16`,
    `softmax_plus` of GAU-alpha, whose author finds smaller factors to do harm.

    Attributes:
      core: whose queries are multiplied; a bias is not.
      base: the number of keys of the factor one.
      least: fewer keys count as so many.
    """

    core: Core = Softmax()
    base: float = 512.0
    least: int = 1

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
        num_queries, num_keys = query.shape[1], key.shape[1]
        counted = mask
        if decode:
            is_new = not self.has_variable("cache", "index")
            index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
            if not is_new:
                counted = mask.replace(offset=index.value, causal=True)
                num_keys = num_keys if mask.valid is None else mask.valid.shape[1]
                index.value += num_queries
        seen = count_seen(counted, num_queries, num_keys)
        factor = jnp.log(jnp.maximum(seen, self.least)) / math.log(self.base)
        return self.core(
            query * factor[:, :, None, None].astype(query.dtype),
            key,
            value,
            mask=mask,
            bias=bias,
            train=train,
            decode=decode,
        )
