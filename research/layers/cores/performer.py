"""Performer: the softmax's kernel, estimated with random features in linear time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.cores.base import SEES_ALL, Bias, Mask
from research.layers.cores.kernel_sums import Features, advance, mix
from research.layers.cores.linear import refuse_bias

Norms = Callable[[Array, int, int], Float[Array, "num_features"]]
"""`norms(rng, num_features, dim)`: lengths of random directions."""

Draw = Callable[[Array, int, int], Float[Array, "num_features dim"]]
"""`draw(rng, num_features, dim)`: vectors to project on."""


def chi(rng: Array, num_features: int, dim: int) -> Float[Array, "num_features"]:
    """Those of Gaussian vectors: each projection is Gaussian, as theory has it."""
    return jnp.linalg.norm(jax.random.normal(rng, (num_features, dim)), axis=-1)


def constant(rng: Array, num_features: int, dim: int) -> Float[Array, "num_features"]:
    """sqrt(dim) ("ortho scaling 1" of the official code): less variance, some bias."""
    return jnp.full(num_features, math.sqrt(dim))


def orthogonal(
    rng: Array, num_features: int, dim: int, norms: Norms = chi
) -> Float[Array, "num_features dim"]:
    """Blocks of `dim` vectors that are orthogonal to each other.

    Differs: the official code leaves the signs of its QR decomposition as they come,
    so that some coordinates are always negative and the estimate has a bias.
    """
    of_directions, of_norms = jax.random.split(rng)
    blocks = jax.random.orthogonal(of_directions, dim, (-(-num_features // dim),))
    directions = blocks.reshape(-1, dim)[:num_features]
    return directions * norms(of_norms, num_features, dim)[:, None]


def independent(
    rng: Array, num_features: int, dim: int
) -> Float[Array, "num_features dim"]:
    """Gaussian vectors, each for itself."""
    return jax.random.normal(rng, (num_features, dim))


@runtime_checkable
class RandomFeatures(Protocol):
    """Features of queries or keys, given the vectors to project them on."""

    @property
    def floor(self) -> float:
        """Added to every feature.

        In units of the largest scale: of a query's own, and for keys of all that it
        sees.
        """
        ...

    def __call__(
        self,
        x: Float[Array, "batch length heads dim"],
        projection: Float[Array, "num_features dim"],
    ) -> Features: ...


@dataclass(frozen=True)
class Positive:
    """FAVOR+: exp(w x - |x|^2 / 2), of x / dim^(1/4) (Lemma 1).

    The scale is the largest w x, as in the official code: the largest over the features
    for a query, over features and keys for keys. There these are all keys, even those
    that a causal query does not see; here those that it sees, which is what that code
    would give for them alone, and what decoding can know.
    """

    floor: float = 1e-6

    def __call__(
        self,
        x: Float[Array, "batch length heads dim"],
        projection: Float[Array, "num_features dim"],
    ) -> Features:
        x = x * x.shape[-1] ** -0.25
        exponents = jnp.einsum("blhd,rd->blhr", x, projection)
        scale = jax.lax.stop_gradient(exponents.max(-1))
        exponents -= (scale + (x**2).sum(-1) / 2)[..., None]
        return Features(jnp.exp(exponents) * len(projection) ** -0.5, scale)


@dataclass(frozen=True)
class Trigonometric:
    """exp(|x|^2 / 2) [cos(w x), sin(w x)], of x / dim^(1/4) (Eq. 10).

    An estimate without bias of the same kernel, but one that may be negative: where
    weights are small its variance is without bound.
    """

    floor: float = 0.0

    def __call__(
        self,
        x: Float[Array, "batch length heads dim"],
        projection: Float[Array, "num_features dim"],
    ) -> Features:
        x = x * x.shape[-1] ** -0.25
        angles = jnp.einsum("blhd,rd->blhr", x, projection)
        scale = (x**2).sum(-1) / 2
        constant_scale = jax.lax.stop_gradient(scale)
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        length = jnp.exp(scale - constant_scale) * len(projection) ** -0.5
        return Features(waves * length[..., None], constant_scale)


@dataclass(frozen=True)
class Generalized:
    """activation(w x): another kernel than the softmax's (Performer-ReLU, App. A.4)."""

    activation: Callable[[Array], Array] = nn.relu
    floor: float = 1e-3

    def __call__(
        self,
        x: Float[Array, "batch length heads dim"],
        projection: Float[Array, "num_features dim"],
    ) -> Features:
        features = jnp.einsum("blhd,rd->blhr", x, projection)
        return Features(self.activation(features) * len(projection) ** -0.5)


class Performer(nn.Module):
    """Attention with random features for its kernel, in linear time.

    Choromanski et al. 2021, arXiv:2009.14794, Algorithm 1. The vectors w are in the
    collection `features`, drawn with the parameters. Decoding keeps sums of constant
    size. Takes no bias.

    Differs: the official code adds 2e-6 to a denominator of up to 1e-6; with 64
    dimensions a sum over few keys is smaller, and their values would be lost.

    Attributes:
      num_features: how many w.
      features: `Positive` and `Trigonometric` estimate the softmax of q k / sqrt(dim).
      draw: of w.
      redraw: whether training draws new ones at each step, from the rng `features`.
        The paper does for the softmax's kernel, whose estimate else grows apart from
        the kernel as queries and keys grow, but not for `Generalized`.
      chunk_size: of the positions that causal attention takes at once; changes speed
        and memory, not the result.
    """

    num_features: int = 256
    features: RandomFeatures = Positive()
    draw: Draw = orthogonal
    redraw: bool = True
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
        size = (self.num_features, query.shape[-1])
        stored = self.variable(
            "features", "projection", lambda: self.draw(self.make_rng("params"), *size)
        )
        projection = stored.value
        if train and self.redraw:
            projection = self.draw(self.make_rng("features"), *size)
        floor = self.features.floor * self.num_features**-0.5
        queries = self.features(query.astype(jnp.float32), projection).values + floor
        keys = self.features(key.astype(jnp.float32), projection)
        if keys.log_scale is None:
            keys = Features(keys.values + floor)
        start = advance(self, key.shape[1]) if decode else None
        numerator, denominator, _ = mix(
            self, queries, keys, value, mask, self.chunk_size, decode, start
        )
        if keys.log_scale is not None and floor > 0:
            # All features of a key have the same floor: it is one more feature, of one.
            floors = floor * queries.sum(-1, keepdims=True)
            ones = Features(jnp.ones((*value.shape[:3], 1)))
            below = mix(
                self,
                floors,
                ones,
                value,
                mask,
                self.chunk_size,
                decode,
                start,
                "floor_",
            )
            numerator += below.numerator
            denominator += below.denominator
        is_small = jnp.abs(denominator) < 1e-18
        denominator = jnp.where(is_small, 1e-18, denominator)
        return (numerator / denominator[..., None]).astype(value.dtype)
