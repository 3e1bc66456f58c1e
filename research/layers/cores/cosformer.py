"""cosFormer: a linear kernel that fades with distance."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.layers.cores.base import SEES_ALL, Bias, Mask
from research.layers.cores.kernel_sums import Features, advance, mix
from research.layers.cores.linear import FeatureMap, refuse_bias, relu


class CosFormer(nn.Module):
    """Weights max(q, 0) max(k, 0) cos(pi/2 (i - j) / max_length), in linear time.

    Qin et al. 2022, arXiv:2202.08791, Eq. 10: the cosine of a difference is a sum of
    two products, so each feature becomes two. The denominator is at least `epsilon`, as
    in the official code. Takes no bias.

    Attributes:
      max_length: of the two sequences: no distance may reach it. The official code
        takes the length of each batch, which decoding cannot know.
      feature_map: of queries and keys, before the cosine.
      epsilon: the least denominator.
      chunk_size: of the positions that causal attention takes at once; changes speed
        and memory, not the result.
    """

    max_length: int
    feature_map: FeatureMap = relu
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
        """Raises `UserError` for sequences longer than `max_length`."""
        refuse_bias(self, bias)
        num_queries, num_keys = query.shape[1], key.shape[1]
        if max(num_queries, num_keys) > self.max_length:
            raise UserError(
                f"CosFormer(max_length={self.max_length}) was given a sequence of "
                f"{max(num_queries, num_keys)}: farther keys would get negative "
                "weights; give max_length the longest sequence"
            )
        start = advance(self, num_keys) if decode else None
        if start is not None:
            mask = mask.replace(offset=start)
        query_positions, key_positions = mask.positions(num_queries, num_keys)
        if start is not None:
            key_positions = key_positions + start
        queries = self._turn(query, query_positions).values
        keys = self._turn(key, key_positions)
        mixed = mix(self, queries, keys, value, mask, self.chunk_size, decode, start)
        denominator = jnp.maximum(mixed.denominator, self.epsilon)
        return (mixed.numerator / denominator[..., None]).astype(value.dtype)

    def _turn(
        self,
        x: Float[Array, "batch length heads dim"],
        positions: Int[Array, "length"],
    ) -> Features:
        angles = (math.pi / 2 / self.max_length) * positions[None, :, None, None]
        values = self.feature_map(x.astype(jnp.float32)).values
        parts = [values * jnp.sin(angles), values * jnp.cos(angles)]
        return Features(jnp.concatenate(parts, axis=-1))
