"""Sparse attention: each query sees few keys, and only those are computed."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.errors import UserError
from research.layers.cores.base import SEES_ALL, Bias, Mask, remember, repeat_heads
from research.layers.cores.softmax import Scale, inverse_sqrt
from research.layers.dropout import Dropout


@runtime_checkable
class Hop(Protocol):
    """A rule of which keys a query sees, and groups in which such pairs stand close.

    Positions are in groups: (batch, length, ...) <-> (batch, groups, size, ...), padded
    with zeros. A query is in one group, a key in any number.
    """

    def sees(self, queries: Array, keys: Array) -> Bool[Array, "..."]:
        """Whether, by positions of shapes that broadcast."""
        ...

    def group_queries(self, x: Array) -> Array:
        """Into groups."""
        ...

    def ungroup_queries(self, x: Array, length: int) -> Array:
        """And back."""
        ...

    def group_keys(self, x: Array, causal: bool) -> Array:
        """Those that queries of the group see."""
        ...


Pattern = tuple[Hop, ...]
"""A head sees what any of the hops sees: its hops are "merged"."""


@dataclass(frozen=True)
class Local:
    """Fewer than `window` positions away."""

    window: int

    def sees(self, queries: Array, keys: Array) -> Bool[Array, "..."]:
        return jnp.abs(queries - keys) < self.window

    def group_queries(self, x: Array) -> Array:
        return _rows(x, min(self.window, x.shape[1]))

    def ungroup_queries(self, x: Array, length: int) -> Array:
        return _flat(x, length)

    def group_keys(self, x: Array, causal: bool) -> Array:
        own = self.group_queries(x)
        nothing = jnp.zeros_like(own[:, :1])
        parts = [jnp.concatenate([nothing, own[:, :-1]], axis=1), own]
        if not causal:
            parts.append(jnp.concatenate([own[:, 1:], nothing], axis=1))
        return jnp.concatenate(parts, axis=2)


@dataclass(frozen=True)
class Strided:
    """A multiple of `stride` away."""

    stride: int

    def sees(self, queries: Array, keys: Array) -> Bool[Array, "..."]:
        return (queries - keys) % self.stride == 0

    def group_queries(self, x: Array) -> Array:
        return jnp.swapaxes(_rows(x, self.stride), 1, 2)

    def ungroup_queries(self, x: Array, length: int) -> Array:
        return _flat(jnp.swapaxes(x, 1, 2), length)

    def group_keys(self, x: Array, causal: bool) -> Array:
        return self.group_queries(x)


@dataclass(frozen=True)
class Block:
    """In the same one of blocks of `size` positions."""

    size: int

    def sees(self, queries: Array, keys: Array) -> Bool[Array, "..."]:
        return queries // self.size == keys // self.size

    def group_queries(self, x: Array) -> Array:
        return _rows(x, min(self.size, x.shape[1]))

    def ungroup_queries(self, x: Array, length: int) -> Array:
        return _flat(x, length)

    def group_keys(self, x: Array, causal: bool) -> Array:
        return self.group_queries(x)


@dataclass(frozen=True)
class Summary:
    """Of every block of `size` positions `count` that stand for it.

    Attributes:
      size: of a block.
      count: of positions of each.
      column: 0 for the last ones of the block, 1 for those before them, ...
    """

    size: int
    count: int
    column: int = 0

    def sees(self, queries: Array, keys: Array) -> Bool[Array, "..."]:
        return (self.size - 1 - keys % self.size) // self.count == self.column

    def group_queries(self, x: Array) -> Array:
        return x[:, None]

    def ungroup_queries(self, x: Array, length: int) -> Array:
        return x[:, 0]

    def group_keys(self, x: Array, causal: bool) -> Array:
        stop = self.size - self.column * self.count
        chosen = _rows(x, self.size)[:, :, max(stop - self.count, 0) : stop]
        return chosen.reshape(x.shape[0], 1, -1, *x.shape[2:])


def local(window: int) -> tuple[Pattern, ...]:
    """Fewer than `window` positions away."""
    return ((Local(window),),)


def strided(stride: int, merged: bool = True) -> tuple[Pattern, ...]:
    """The last `stride` positions, and every `stride`-th one.

    For data that repeats after `stride` positions, as the rows of an image do.

    Args:
      stride: about the root of the length, for the least work.
      merged: whether a head sees both, or heads take turns.
    """
    return _patterns(Local(stride), Strided(stride), merged)


def fixed(
    size: int, count: int, merged: bool = True, num_columns: int = 1
) -> tuple[Pattern, ...]:
    """The query's block, and the last positions of every block.

    Args:
      size: of a block, about the root of the length.
      count: of positions that stand for a block: 8, 16 or 32 for blocks of 128 or 256.
      merged: whether a head sees both, or heads take turns.
      num_columns: of as many heads in turn each has positions of its own to stand for a
        block, next to the last ones, as the official code does ("distinct subblocks").
    """
    if num_columns * count > size:
        raise UserError(
            f"fixed(size={size}): {num_columns} times {count} positions cannot stand "
            "for a block; choose num_columns and count whose product is at most size"
        )
    columns = [Summary(size, count, column) for column in range(num_columns)]
    return sum((_patterns(Block(size), column, merged) for column in columns), ())


def _patterns(first: Hop, second: Hop, merged: bool) -> tuple[Pattern, ...]:
    return ((first, second),) if merged else ((first,), (second,))


class Sparse(nn.Module):
    """softmax(scale q k + bias) v over the keys of a pattern, at their cost alone.

    Child et al. 2019, arXiv:1904.10509, section 4. For `strided` and `fixed` patterns
    of about the root of the length, two layers, or heads in two, reach every position.
    For a sequence that attends to itself. A query that sees no key gets zeros. Decoding
    remembers all keys, and looks at each.

    Attributes:
      patterns: of as many heads in turn; see `local`, `strided` and `fixed`.
      scale: of the logits.
      dropout_rate: of the weights, in training.
    """

    patterns: tuple[Pattern, ...]
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
        """Raises `UserError` for other keys than the queries' own."""
        if decode:
            key, value, mask = remember(self, key, value, mask)
        elif query.shape[1] != key.shape[1]:
            raise UserError(
                f"Sparse was given {query.shape[1]} queries and {key.shape[1]} keys: "
                "its patterns are of a sequence that attends to itself; give Softmax "
                "for attention to another one"
            )
        num_heads, num_patterns = query.shape[2], len(self.patterns)
        if num_heads % num_patterns:
            raise UserError(
                f"{num_heads} heads cannot take turns at {num_patterns} patterns: "
                "choose num_heads that they divide"
            )
        key, value = repeat_heads(key, num_heads), repeat_heads(value, num_heads)
        dropout = Dropout(self.dropout_rate, name="dropout")
        outputs = []
        for index, pattern in enumerate(self.patterns):
            own = slice(index, None, num_patterns)
            heads = (query[:, :, own], key[:, :, own], value[:, :, own])
            hops: Pattern = (_Whole(pattern),) if decode else pattern
            parts = []
            for number, hop in enumerate(hops):
                pairs = _pairs(heads, hop, hops[:number], mask)
                added = None
                if bias is not None:
                    added = jax.vmap(bias)(*pairs.positions)[None, :, own]
                parts.append(_look(pairs, self.scale, added, dropout, train))
            outputs.append(_merge(parts))
        out = jnp.stack(outputs, axis=3).reshape(*query.shape[:3], -1)
        return out.astype(value.dtype)


class _Pairs(NamedTuple):
    """Queries and keys in groups, and which of them see each other."""

    hop: Hop
    query: Float[Array, "batch groups queries heads dim"]
    key: Float[Array, "batch groups keys heads dim"]
    value: Float[Array, "batch groups keys heads value_dim"]
    seen: Bool[Array, "#batch groups queries keys"]
    positions: tuple[Array, Array]
    length: int


class _Part(NamedTuple):
    """What queries see by one hop, in units of `exp(largest)`."""

    numerator: Float[Array, "batch queries heads value_dim"]
    denominator: Float[Array, "batch queries heads"]
    largest: Float[Array, "batch queries heads"]


@dataclass(frozen=True)
class _Whole:
    """All pairs in one group, to see what any of the hops sees."""

    pattern: Pattern

    def sees(self, queries: Array, keys: Array) -> Bool[Array, "..."]:
        seen = jnp.zeros((), bool)
        for hop in self.pattern:
            seen = seen | hop.sees(queries, keys)
        return seen

    def group_queries(self, x: Array) -> Array:
        return x[:, None]

    def ungroup_queries(self, x: Array, length: int) -> Array:
        return x[:, 0]

    def group_keys(self, x: Array, causal: bool) -> Array:
        return x[:, None]


def _pairs(
    heads: tuple[Array, Array, Array], hop: Hop, known: Pattern, mask: Mask
) -> _Pairs:
    """By `hop`, without the pairs that the `known` hops see."""
    query, key, value = heads
    num_queries, num_keys = query.shape[1], key.shape[1]

    def of_queries(x: Array) -> Array:
        return hop.group_queries(x)

    def of_keys(x: Array) -> Array:
        return hop.group_keys(x, mask.causal)

    # Padding is zeros: positions from one tell it apart.
    queries, keys = mask.positions(num_queries, num_keys)
    queries = of_queries(queries[None] + 1)[..., None] - 1
    keys = of_keys(keys[None] + 1)[..., None, :] - 1
    seen = hop.sees(queries, keys) & (queries >= 0) & (keys >= 0)
    for other in known:
        seen = seen & ~other.sees(queries, keys)
    if mask.causal:
        seen = seen & (keys <= queries)
    if mask.valid is not None:
        seen = seen & of_keys(mask.valid)[:, :, None]
    if mask.segments is not None:
        of_query, of_key = mask.segments
        seen = seen & (of_queries(of_query)[..., None] == of_keys(of_key)[:, :, None])
    return _Pairs(
        hop,
        of_queries(query),
        of_keys(key),
        of_keys(value),
        seen,
        (queries[0, ..., 0], keys[0, :, 0]),
        num_queries,
    )


def _look(
    pairs: _Pairs, scale: Scale, bias: Array | None, dropout: Dropout, train: bool
) -> _Part:
    """The softmax's parts, in float32."""
    logits = jnp.einsum(
        "bgqhd,bgkhd->bghqk",
        pairs.query,
        pairs.key,
        preferred_element_type=jnp.float32,
    )
    logits *= scale(pairs.query.shape[-1])
    if bias is not None:
        logits += bias
    seen = pairs.seen[:, :, None]
    logits = jnp.where(seen, logits, -1e30)
    largest = jax.lax.stop_gradient(logits.max(-1))
    weights = jnp.where(seen, jnp.exp(logits - largest[..., None]), 0)
    denominator = weights.sum(-1)
    weights = dropout(weights, train).astype(pairs.value.dtype)
    numerator = jnp.einsum(
        "bghqk,bgkhd->bgqhd",
        weights,
        pairs.value,
        preferred_element_type=jnp.float32,
    )

    def back(x: Array) -> Array:
        return pairs.hop.ungroup_queries(x, pairs.length)

    return _Part(
        back(numerator),
        back(jnp.swapaxes(denominator, 2, 3)),
        back(jnp.swapaxes(largest, 2, 3)),
    )


def _merge(parts: list[_Part]) -> Float[Array, "batch queries heads value_dim"]:
    """One softmax over the keys of all parts."""
    largest = jnp.stack([part.largest for part in parts]).max(0)
    numerator = denominator = jnp.zeros(())
    for part in parts:
        unit = jnp.exp(part.largest - largest)
        numerator = numerator + part.numerator * unit[..., None]
        denominator = denominator + part.denominator * unit
    # A query that sees no key: any number but zero will do.
    return numerator / jnp.where(denominator == 0, 1, denominator)[..., None]


def _rows(x: Array, size: int) -> Array:
    """(batch, length, ...) -> (batch, rows, size, ...), padded with zeros."""
    margin = [(0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)]
    x = jnp.pad(x, margin)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _flat(x: Array, length: int) -> Array:
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
