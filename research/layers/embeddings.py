"""Vectors for scalars and tokens."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from research.layers.dropout import Dropout
from research.layers.initializers import Normal


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


class TokenEmbedding(nn.Module):
    """A vector for each token, with its position's code added, and the way back.

    Attributes:
      vocab_size: tokens beyond it become NaN.
      embed_dim: of the vectors.
      scale: of the vectors: sqrt(embed dim) in Vaswani et al. 2017, section 3.4.
      positions: called with positions (batch, length) and the dimension, for what is
        added; None is for nothing.
      num_types: of segments that differ by a vector of their own (BERT's sentences).
      norm: of the sum; None is for none.
      dropout_rate: of the result, in training.
      embedding_init: of the table of tokens.
      dtype: of the result.
    """

    vocab_size: int
    embed_dim: int
    scale: float = 1.0
    positions: Callable[[Array, int], Array] | None = None
    num_types: int = 0
    norm: Callable[..., nn.Module] | None = None
    dropout_rate: float = 0.0
    embedding_init: Initializer = Normal(0.02)
    dtype: str = "float32"

    def setup(self):
        shape = (self.vocab_size, self.embed_dim)
        self.embedding = self.param("embedding", self.embedding_init, shape)
        if self.num_types:
            shape = (self.num_types, self.embed_dim)
            self.type_embedding = self.param(
                "type_embedding", self.embedding_init, shape
            )
        if self.norm is not None:
            self.embedding_norm = self.norm(dtype=self.dtype)
        self.dropout = Dropout(self.dropout_rate)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "#batch length"] | None = None,
        types: Int[Array, "batch length"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch length embed_dim"]:
        """`positions` None is for 0, 1, ...; `types` None for the first one."""
        x = jnp.take(self.embedding, tokens, axis=0, mode="fill") * self.scale
        if self.num_types:
            types = jnp.zeros_like(tokens) if types is None else types
            x += jnp.take(self.type_embedding, types, axis=0, mode="fill")
        if self.positions is not None:
            if positions is None:
                positions = jnp.arange(tokens.shape[1])[None]
            x += self.positions(positions, self.embed_dim)
        if self.norm is not None:
            x = self.embedding_norm(x, train)
        return self.dropout(x, train).astype(self.dtype)

    def attend(
        self, x: Float[Array, "*batch embed_dim"]
    ) -> Float[Array, "*batch vocab_size"]:
        """Products with every token's vector, in float32: tied logits."""
        return jnp.einsum(
            "...m,vm->...v",
            x,
            self.embedding.astype(x.dtype),
            preferred_element_type=jnp.float32,
        )
