"""Efficient attention: one softmax over features, one over positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.cores.base import SEES_ALL, Bias, Mask
from research.layers.cores.kernel_sums import Features, attend
from research.layers.cores.linear import (
    Linear,
    exponential,
    refuse_bias,
    softmax_features,
)


class DoubleSoftmax(nn.Module):
    """softmax(q over features) (softmax(k over positions) v), in linear time.

    Shen et al. 2018, arXiv:1812.01243, Eq. 4. The paper does not say what it is if
    causal: there the second softmax's denominator grows with the position, is taken of
    the weight of all features together (Su 2021, kexue.fm/archives/8338), and that of
    the first cancels. So it then equals `Linear(exponential)`. Takes no bias.

    Attributes:
      epsilon: added to the denominator of the causal form.
      chunk_size: of the positions that causal attention takes at once; changes speed
        and memory, not the result.
    """

    epsilon: float = 1e-6
    chunk_size: int = 64

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
        refuse_bias(self, bias)
        if mask.causal or decode:
            causal = Linear(
                softmax_features,
                exponential,
                epsilon=self.epsilon,
                chunk_size=self.chunk_size,
                name="causal",
            )
            mask = mask.replace(causal=True)
            return causal(query, key, value, mask=mask, decode=decode)
        queries = softmax_features(query.astype(jnp.float32)).values
        keys = Features(_over_positions(key.astype(jnp.float32), mask))
        values = value.astype(jnp.float32)
        mixed = attend(queries, keys, values, mask, self.chunk_size)
        return mixed.numerator.astype(value.dtype)


def _over_positions(
    key: Float[Array, "batch keys kv_heads dim"], mask: Mask
) -> Float[Array, "batch keys kv_heads dim"]:
    """The softmax over the positions of each segment, none of them padding."""
    if mask.valid is not None:
        key = jnp.where(mask.valid[:, :, None, None], key, -1e30)
    if mask.segments is None:
        weights = jnp.exp(key - jax.lax.stop_gradient(key.max(1, keepdims=True)))
        if mask.valid is not None:
            weights = jnp.where(mask.valid[:, :, None, None], weights, 0)
        total = weights.sum(1, keepdims=True)
        return weights / jnp.where(total == 0, 1, total)

    segments = mask.segments[1]
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    runs = jnp.cumsum(starts, axis=1)  # the how manieth segment of its row

    def one_row(key: Array, runs: Array) -> Array:
        options = {"num_segments": len(runs), "indices_are_sorted": True}
        largest = jax.ops.segment_max(jax.lax.stop_gradient(key), runs, **options)
        weights = jnp.exp(key - largest[runs])
        weights = jnp.where(key > -1e30, weights, 0)
        total = jax.ops.segment_sum(weights, runs, **options)[runs]
        return weights / jnp.where(total == 0, 1, total)

    return jax.vmap(one_row)(key, runs)
