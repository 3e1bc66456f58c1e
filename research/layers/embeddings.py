"""Vectors for scalars and tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a scalar at frequencies in geometric progression.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5, as diffusion models use it: all
    sines, then all cosines; frequencies from 1 to 1 / `max_period`.

    Attributes:
      embed_dim: even, at least 4.
      scale: multiplies the scalar. 999 takes times in [0, 1] to the steps of a
        discrete chain of 1000 (Song et al. 2021, arXiv:2011.13456, official code).
      max_period: the inverse of the smallest frequency.
      endpoint: whether 1 / `max_period` is a frequency itself, as in DDPM's code
        (arXiv:2006.11239), or the one that would follow the last.
      cosines_first: all cosines, then all sines.
    """

    embed_dim: int
    scale: float = 999.0
    max_period: float = 10_000.0
    endpoint: bool = True
    cosines_first: bool = False

    @nn.compact
    def __call__(self, t: Float[Array, "batch"]) -> Float[Array, "batch embed_dim"]:
        half = self.embed_dim // 2
        exponents = jnp.linspace(0.0, 1.0, half, endpoint=self.endpoint)
        angles = self.scale * t[:, None] * (self.max_period**-exponents)[None]
        waves = [jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(waves[::-1] if self.cosines_first else waves, axis=-1)


class FourierEmbedding(nn.Module):
    """Sines and cosines of a scalar at fixed random frequencies.

    Tancik et al. 2020, arXiv:2006.10739, as Song et al. 2021, arXiv:2011.13456, App. H,
    embed the logarithm of the noise level: all sines, then all cosines, of 2 pi f t.

    The frequencies are a parameter, so that they are drawn, counted and saved with the
    model, but they get no gradient: a rule that moves parameters without one, such as
    weight decay, must leave them out.

    Attributes:
      num_frequencies: half the width of the output.
      scale: the standard deviation of the frequencies, which have mean zero.
    """

    num_frequencies: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, t: Float[Array, "batch"]) -> Float[Array, "batch embed_dim"]:
        frequencies = jax.lax.stop_gradient(
            self.param(
                "frequencies",
                nn.initializers.normal(self.scale),
                (self.num_frequencies,),
            )
        )
        angles = t[:, None] * frequencies[None] * (2 * jnp.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
