"""Where tokens stand: added codes, rotations, and biases of the logits."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.layers.cores.base import Bias
from research.layers.initializers import Normal

Rotation = Callable[[Array, Array], Array]
"""Queries or keys (batch, length, heads, dim) and their positions (batch, length)."""


# Added to the embeddings


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed sines and cosines of the position (Vaswani et al. 2017, section 3.5).

    Attributes:
      max_period: the inverse of the smallest frequency, times 2 pi.
      interleaved: sine and cosine of a frequency side by side, as in the paper, rather
        than all sines, then all cosines, as in its code.
      endpoint: whether 1 / `max_period` itself is a frequency, as in its code.
    """

    max_period: float = 10_000.0
    interleaved: bool = True
    endpoint: bool = False

    def __call__(
        self, positions: Int[Array, "batch length"], embed_dim: int
    ) -> Float[Array, "batch length embed_dim"]:
        half = embed_dim // 2
        exponents = jnp.linspace(0.0, 1.0, half, endpoint=self.endpoint)
        angles = positions[..., None] * (self.max_period**-exponents)[None, None]
        waves = [jnp.sin(angles), jnp.cos(angles)]
        if self.interleaved:
            return jnp.stack(waves, axis=-1).reshape(*positions.shape, embed_dim)
        return jnp.concatenate(waves, axis=-1)


class Learned(nn.Module):
    """A vector for each position up to `max_length`, learnt.

    Attributes:
      max_length: positions beyond it become NaN.
      offset: of the first position in the table (2 in BART's and RoBERTa's).
      embedding_init: of the table.
    """

    max_length: int
    offset: int = 0
    embedding_init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(
        self, positions: Int[Array, "batch length"], embed_dim: int
    ) -> Float[Array, "batch length embed_dim"]:
        shape = (self.max_length + self.offset, embed_dim)
        table = self.param("embedding", self.embedding_init, shape)
        return jnp.take(table, positions + self.offset, axis=0, mode="fill")


class LearnedGrid(nn.Module):
    """A vector for each row and each column of a matrix that positions fill, learnt.

    Position i is in row i // columns; in an image each pixel may have a third vector,
    that of its channel. All vectors are added up (Child et al. 2019, arXiv:1904.10509,
    section 5.3), or, where they have `dims` of their own, stand side by side (the code
    of Reformer: Kitaev et al. 2020, arXiv:2001.04451).

    Attributes:
      shape: rows and columns, or rows, columns and channels; positions beyond their
        product become NaN.
      dims: of the vectors of each; None is for the embedding's, to add up.
      embedding_init: of the tables.
    """

    shape: tuple[int, int] | tuple[int, int, int]
    dims: tuple[int, ...] | None = None
    embedding_init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(
        self, positions: Int[Array, "batch length"], embed_dim: int
    ) -> Float[Array, "batch length embed_dim"]:
        """Raises `UserError` where `dims` do not make the embedding's."""
        num_axes = len(self.shape)
        dims = self.dims or (embed_dim,) * num_axes
        if self.dims and (len(dims) != num_axes or sum(dims) != embed_dim):
            raise UserError(
                f"LearnedGrid.dims={self.dims} of vectors with {embed_dim} dimensions: "
                f"expected {num_axes} numbers with that sum, or None"
            )
        indices, rest = [], positions
        for size in self.shape[:0:-1]:
            indices.insert(0, rest % size)
            rest = rest // size
        names = ("row", "column", "channel")[:num_axes]
        vectors = []
        for name, size, dim, index in zip(
            names, self.shape, dims, [rest, *indices], strict=True
        ):
            table = self.param(name, self.embedding_init, (size, dim))
            vectors.append(jnp.take(table, index, axis=0, mode="fill"))
        if self.dims:
            return jnp.concatenate(vectors, axis=-1)
        return functools.reduce(jnp.add, vectors)


# Of queries and keys


@dataclass(frozen=True)
class Rotary:
    """Rotates pairs of dimensions by angles in proportion to the position.

    Su et al. 2021, arXiv:2104.09864: a product of a rotated query and key depends on
    how far apart they stand. Dimension i is paired with i + dim / 2, as in the released
    Llama and Qwen weights; `interleaved` pairs neighbours, as in the paper. Computed in
    float32.

    Attributes:
      theta: the inverse of the smallest frequency.
      dim: how many of the dimensions rotate, the first ones; None is for all.
    """

    theta: float = 10_000.0
    dim: int | None = None
    interleaved: bool = False

    def __call__(
        self,
        x: Float[Array, "batch length heads dim"],
        positions: Int[Array, "#batch length"],
    ) -> Float[Array, "batch length heads dim"]:
        """Raises `UserError` for a number of dimensions that makes no pairs."""
        dim = self.dim or x.shape[-1]
        if dim % 2 or dim > x.shape[-1]:
            raise UserError(
                f"Rotary(dim={dim}) of heads with {x.shape[-1]} dimensions: expected "
                "an even number, no more than they have"
            )
        frequencies = self.theta ** -(np.arange(0, dim, 2)[None, None, None] / dim)
        angles = positions[:, :, None, None] * jnp.asarray(frequencies, jnp.float32)
        sine, cosine = jnp.sin(angles), jnp.cos(angles)
        rotating = x[..., :dim].astype(jnp.float32)
        if self.interleaved:
            left, right = rotating[..., ::2], rotating[..., 1::2]
        else:
            left, right = jnp.split(rotating, 2, axis=-1)
        turned = [left * cosine - right * sine, right * cosine + left * sine]
        if self.interleaved:
            rotated = jnp.stack(turned, axis=-1).reshape(rotating.shape)
        else:
            rotated = jnp.concatenate(turned, axis=-1)
        return jnp.concatenate([rotated.astype(x.dtype), x[..., dim:]], axis=-1)


# Of the logits


class RelativeBias(nn.Module):
    """A learnt number for each head and each bucket of distances.

    Raffel et al. 2020, arXiv:1910.10683, section 2.1, by its code: half of the buckets
    are for exact distances, the other half grow logarithmically up to `max_distance`;
    if bidirectional, keys ahead have half of all buckets for themselves.
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True
    embedding_init: Initializer = Normal(1.0)

    @nn.compact
    def __call__(self) -> Bias:
        table = self.param(
            "embedding", self.embedding_init, (self.num_buckets, self.num_heads)
        )
        bucket = functools.partial(
            relative_bucket,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        return jax.tree_util.Partial(functools.partial(_from_table, bucket), table)


def _from_table(
    bucket: Callable[[Array], Array], table: Array, queries: Array, keys: Array
) -> Float[Array, "heads queries keys"]:
    distances = keys[None, :] - queries[:, None]
    return jnp.moveaxis(table[bucket(distances)], -1, 0)


def relative_bucket(
    distances: Int[Array, "queries keys"],
    num_buckets: int,
    max_distance: int,
    bidirectional: bool,
) -> Int[Array, "queries keys"]:
    """The bucket of each key position less query position; see `RelativeBias`."""
    ahead = 0
    if bidirectional:
        num_buckets //= 2
        ahead = jnp.where(distances > 0, num_buckets, 0)
        distances = jnp.abs(distances)
    else:
        distances = jnp.maximum(-distances, 0)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distances, 1) / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    far = jnp.minimum(far, num_buckets - 1)
    return ahead + jnp.where(distances < exact, distances, far)


class ToeplitzBias(nn.Module):
    """A learnt number for each head and each distance, either way, below `max_length`.

    Hua et al. 2022, arXiv:2202.10447, for sequences up to 512 (by its pseudocode's
    ports). Longer distances share the last number.
    """

    num_heads: int
    max_length: int
    embedding_init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(self) -> Bias:
        shape = (2 * self.max_length - 1, self.num_heads)
        table = self.param("embedding", self.embedding_init, shape)
        bucket = functools.partial(_clipped, self.max_length - 1)
        return jax.tree_util.Partial(functools.partial(_from_table, bucket), table)


def _clipped(most: int, distances: Array) -> Array:
    return jnp.clip(distances, -most, most) + most


class RotaryBias(nn.Module):
    """The product of two learnt vectors of a head, turned by the positions.

    Hua et al. 2022, arXiv:2202.10447, for sequences beyond 512 (by its pseudocode's
    ports): dim / 2 waves of the distance, so that no length is the longest.
    """

    num_heads: int
    dim: int = 128
    rotary: Rotation = Rotary()
    vectors_init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(self) -> Bias:
        shape = (self.num_heads, self.dim)
        query, key = (
            self.param(name, self.vectors_init, shape) for name in ("query", "key")
        )
        return jax.tree_util.Partial(
            functools.partial(_from_rotation, self.rotary), query, key
        )


def _from_rotation(
    rotary: Rotation, query: Array, key: Array, queries: Array, keys: Array
) -> Float[Array, "heads queries keys"]:
    def turned(vectors: Array, positions: Array) -> Array:
        shape = (1, len(positions), *vectors.shape)
        return rotary(jnp.broadcast_to(vectors, shape), positions[None])[0]

    return jnp.einsum("qhd,khd->hqk", turned(query, queries), turned(key, keys))


@dataclass(frozen=True)
class Alibi:
    """A fixed penalty in proportion to the distance, steeper for some heads.

    Press et al. 2022, arXiv:2108.12409: slopes 2^(-8/heads), 2^(-16/heads), ...; for a
    number of heads that is no power of two, every second one of twice as many follows.
    """

    num_heads: int

    def __call__(self) -> Bias:
        power = 2 ** math.floor(math.log2(self.num_heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        finer = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
        slopes += finer[: self.num_heads - power]
        return jax.tree_util.Partial(_from_slopes, jnp.asarray(slopes, jnp.float32))


def _from_slopes(
    slopes: Array, queries: Array, keys: Array
) -> Float[Array, "heads queries keys"]:
    distances = jnp.abs(keys[None, :] - queries[:, None]).astype(jnp.float32)
    return -slopes[:, None, None] * distances[None]
