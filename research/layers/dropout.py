"""Dropout: of elements, half a random word for each, and of whole examples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Dropout(nn.Module):
    """Zeroes elements with probability `rate`, scales the others to keep the mean.

    Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting". The rate is met to 2^-17: an element costs 16 random bits, not the 32
    of `flax.linen.Dropout`, whose drawing takes as long as a convolution on a CPU.

    Attributes:
      rate: in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "*shape channels"], train: bool
    ) -> Float[Array, "*shape channels"]:
        """Draws from the `dropout` rng in training; otherwise returns `x`."""
        kept = round((1 - self.rate) * 2**16)
        if not train or kept == 2**16:
            return x
        *shape, channels = x.shape
        words = jax.random.bits(
            self.make_rng("dropout"), (*shape, (channels + 1) // 2), jnp.uint32
        )
        halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
        halves = halves.reshape(*shape, -1)[..., :channels]
        return jnp.where(halves < kept, x * (2**16 / kept), 0)


class StochasticDepth(nn.Module):
    """Zeroes whole examples with probability `rate`, scales the others.

    Of a branch's output, so that some examples pass the layer by: Huang et al. 2016,
    arXiv:1603.09382, scaled as dropout is.

    Attributes:
      rate: in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *shape channels"], train: bool
    ) -> Float[Array, "batch *shape channels"]:
        """Draws from the `dropout` rng in training; otherwise returns `x`."""
        if not train or self.rate == 0:
            return x
        kept = 1 - self.rate
        shape = (len(x), *[1] * (x.ndim - 1))
        keeps = jax.random.bernoulli(self.make_rng("dropout"), kept, shape)
        return jnp.where(keeps, x / kept, 0)
