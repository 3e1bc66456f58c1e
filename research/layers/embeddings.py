"""Vectors for scalars and tokens."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from research.layers.dropout import Dropout
from research.layers.initializers import Normal, lecun
from research.layers.linear import Dense
from research.layers.positions import Sinusoidal


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


class LevelEmbedding(nn.Module):
    """A vector for each level of a scale, such as grey, and a mixture on the way back.

    A level's vector fills one half of the dimensions, its position's code the other
    (Katharopoulos et al. 2020, arXiv:2006.16236, official code). Logits are the
    logarithms of probabilities by a mixture of logistic distributions, so that levels
    which are near are alike: each level has the mass of the unit around it, the first
    and the last all that is beyond, too (Salimans et al. 2017, arXiv:1701.05517,
    section 2.1).

    Attributes:
      embed_dim: of the vectors, even.
      num_levels: of the scale.
      first: the token of level 0; those before it are never expected.
      num_mixtures: logistic distributions.
      positions: called with positions (batch, length) and the dimension.
      embedding_init: of the table.
      mixture_init: of the kernel of the mixture's means, scales and weights.
      dtype: of the vectors.
    """

    embed_dim: int
    num_levels: int = 256
    first: int = 4
    num_mixtures: int = 10
    positions: Callable[[Array, int], Array] = Sinusoidal()
    embedding_init: Initializer = Normal(1.0)
    mixture_init: Initializer = lecun()
    dtype: str = "float32"

    @property
    def vocab_size(self) -> int:
        return self.first + self.num_levels

    def setup(self):
        shape = (self.vocab_size, self.embed_dim // 2)
        self.embedding = self.param("embedding", self.embedding_init, shape)
        self.mixture = Dense(3 * self.num_mixtures, kernel_init=self.mixture_init)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "#batch length"] | None = None,
        types: None = None,
        train: bool = False,
    ) -> Float[Array, "batch length embed_dim"]:
        """`positions` None is for 0, 1, ...; there are no `types`."""
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        x = jnp.take(self.embedding, tokens, axis=0, mode="fill")
        codes = self.positions(positions, self.embed_dim - x.shape[-1])
        codes = jnp.broadcast_to(codes, (*tokens.shape, codes.shape[-1]))
        return jnp.concatenate([x, codes], axis=-1).astype(self.dtype)

    def attend(
        self, x: Float[Array, "*batch embed_dim"]
    ) -> Float[Array, "*batch vocab_size"]:
        """Logarithms of probabilities, in float32."""
        parameters = self.mixture(x.astype(jnp.float32))
        weights, means, scales = jnp.split(parameters, 3, axis=-1)
        log_probs = log_logistic_mixture(weights, means, scales, self.num_levels)
        before = [(0, 0)] * (x.ndim - 1) + [(self.first, 0)]
        return jnp.pad(log_probs, before, constant_values=-1e30)


def log_logistic_mixture(
    weights: Float[Array, "*batch mixtures"],
    means: Float[Array, "*batch mixtures"],
    log_scales: Float[Array, "*batch mixtures"],
    num_levels: int,
) -> Float[Array, "*batch num_levels"]:
    """Logarithms of the levels' probabilities; see `LevelEmbedding`.

    Args:
      weights: before their softmax.
      means: where the levels lie evenly from -1 to 1.
      log_scales: in that unit; no less than -7 counts.
      num_levels: of the scale.
    """
    inverse = jnp.exp(-jnp.maximum(log_scales, -7.0))[..., None, :]
    half = 1 / (num_levels - 1)
    levels = jnp.linspace(-1.0, 1.0, num_levels)
    levels = levels.reshape((1,) * (means.ndim - 1) + (num_levels, 1))
    centred = levels - means[..., None, :]
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): of no two
    # numbers that are nearly equal.
    number = jnp.arange(num_levels).reshape(levels.shape)
    below = jax.nn.log_sigmoid(inverse * (centred + half))
    above = jax.nn.log_sigmoid(-inverse * (centred - half))
    between = jnp.log(-jnp.expm1(-2 * half * inverse))
    is_first, is_last = number == 0, number == num_levels - 1
    log_mass = jnp.where(is_last, 0, below) + jnp.where(is_first, 0, above)
    log_mass += jnp.where(is_first | is_last, 0, between)
    shares = jax.nn.log_softmax(weights)[..., None, :]
    return jax.nn.logsumexp(shares + log_mass, axis=-1)


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
        logits = jnp.einsum(
            "rm,vm->rv",
            x.reshape(-1, x.shape[-1]),  # as `by_rows`
            self.embedding.astype(x.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits.reshape(*x.shape[:-1], -1)
