"""Vectors for scalars and tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a scalar at frequencies in geometric progression.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5, as diffusion models use it: all
    sines, then all cosines; frequencies from 1 to 1 / `max_period`, both included.

    Attributes:
      embed_dim: even, at least 4.
      scale: multiplies the scalar. 999 takes times in [0, 1] to the steps of a
        discrete chain of 1000 (Song et al. 2021, arXiv:2011.13456, official code).
      max_period: the inverse of the smallest frequency.
    """

    embed_dim: int
    scale: float = 999.0
    max_period: float = 10_000.0

    @nn.compact
    def __call__(self, t: Float[Array, "batch"]) -> Float[Array, "batch embed_dim"]:
        half = self.embed_dim // 2
        frequencies = self.max_period ** -jnp.linspace(0.0, 1.0, half)
        angles = self.scale * t[:, None] * frequencies[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
