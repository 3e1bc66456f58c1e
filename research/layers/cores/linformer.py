"""Linformer: keys and values of a sequence projected to few."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.errors import UserError
from research.layers.cores.base import SEES_ALL, Bias, Mask
from research.layers.cores.linear import refuse_bias
from research.layers.cores.softmax import Scale, Softmax, inverse_sqrt


def gaussian(rng: Array, shape: tuple[int, ...]) -> Array:
    """N(0, 1 / last axis), which keeps distances (Wang et al. 2020, Theorem 2)."""
    return jax.random.normal(rng, shape) / math.sqrt(shape[-1])


class Linformer(nn.Module):
    """softmax(scale q (E k)) (F v): E and F mix positions, each to few combinations.

    Wang et al. 2020, arXiv:2006.04768, Eq. 7. Every combination has something of every
    position, so there is no causal form, and a row holds one sequence. Takes no bias.

    E and F are of a layer, as blocks have cores of their own. For the same ones in
    several layers ("layerwise"), the module that holds these makes the instance, in its
    own `__call__`, and gives it to each, with `share_key_value`.

    Attributes:
      max_length: the most keys.
      num_projected: of combinations; 128 or 256 in the paper.
      share_heads: E and F are the same for all heads ("headwise").
      share_key_value: E is F, too ("key-value").
      projection_init: of E and F, (max_length, num_projected) for each head or for all.
      scale: of the logits.
      dropout_rate: of the weights, in training.
    """

    max_length: int
    num_projected: int = 256
    share_heads: bool = True
    share_key_value: bool = False
    projection_init: Callable[[Array, tuple[int, ...]], Array] = gaussian
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
        """Raises `UserError` if causal or packed, or for too many keys."""
        refuse_bias(self, bias)
        if decode or mask.causal:
            raise UserError(
                "Linformer mixes all positions before a query looks at them, so it "
                "cannot be causal: use it in encoders, and another core in decoders"
            )
        if mask.segments is not None:
            raise UserError(
                "Linformer mixes all positions of a row, so sequences cannot be packed "
                "in one: give it one sequence per row"
            )
        num_keys, kv_heads = key.shape[1], key.shape[2]
        if num_keys > self.max_length:
            raise UserError(
                f"Linformer(max_length={self.max_length}) was given {num_keys} keys: "
                "give max_length the longest sequence"
            )
        shape = (self.max_length, self.num_projected)
        if not self.share_heads:
            shape = (kv_heads, *shape)

        first = self.param("key_projection", self.projection_init, shape)
        second = first
        if not self.share_key_value:
            second = self.param("value_projection", self.projection_init, shape)

        def project(x: Array, matrix: Array) -> Array:
            if mask.valid is not None:
                x = jnp.where(mask.valid[:, :, None, None], x, 0)
            rule = "bkhd,kp->bphd" if self.share_heads else "bkhd,hkp->bphd"
            mixed = jnp.einsum(rule, x.astype(jnp.float32), matrix[..., :num_keys, :])
            return mixed.astype(x.dtype)

        key, value = project(key, first), project(value, second)
        softmax = Softmax(self.scale, self.dropout_rate, name="softmax")
        return softmax(query, key, value, train=train)
