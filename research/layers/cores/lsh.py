"""Reformer: attention within buckets of like vectors."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.layers.cores.base import SEES_ALL, Bias, Mask, remember, repeat_heads
from research.layers.cores.linear import refuse_bias
from research.layers.cores.softmax import Scale, unscaled
from research.layers.dropout import Dropout


class LSH(nn.Module):
    """softmax(scale q q'/|q'|) v over vectors q' that hash like q.

    Kitaev et al. 2020, arXiv:2001.04451, section 2. Vectors are sorted by bucket, then
    position; the sorted ones are cut in chunks, and each sees its own and the previous
    chunk. A vector sees itself only where it sees nothing else. Rounds, each with
    buckets of its own, are combined by the weight that each has found; a pair found in
    several counts as often, as in the official code.

    Queries are keys: `key` is not read, and attention with this core makes none. What a
    chunk holds depends on all vectors, so causal attention, which never mixes a later
    value, may still change with them.
    Decoding remembers all vectors, and at each step gives what all so far would.

    Rotations are in the collection `features`, drawn with the parameters. Takes no
    bias.

    Attributes:
      num_buckets: even; a tuple is for as many hashes, whose buckets multiply.
        About twice the length over `chunk_size`.
      chunk_size: of sorted vectors.
      num_rounds: of hashing. For more of them in evaluation than in training, draw
        `features` anew.
      redraw: whether training draws new rotations at each step, from the rng
        `features`.
      scale: of the logits.
      dropout_rate: of the weights, in training.
    """

    shares_keys: ClassVar[bool] = True
    """Whether queries are the keys."""

    num_buckets: int | tuple[int, ...]
    chunk_size: int = 64
    num_rounds: int = 1
    redraw: bool = True
    scale: Scale = unscaled
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
        """Raises `UserError` for keys that cannot be the queries."""
        refuse_bias(self, bias)
        if query.shape[1] != key.shape[1]:
            raise UserError(
                f"LSH was given {query.shape[1]} queries and {key.shape[1]} keys: it "
                "is of a sequence that attends to itself; give Softmax for attention "
                "to another one"
            )
        num_heads, dim = query.shape[2:]
        factors = _factors(self.num_buckets)
        shape = (num_heads, dim, self.num_rounds, sum(factors) // 2)
        stored = self.variable(
            "features",
            "rotations",
            lambda: jax.random.normal(self.make_rng("params"), shape),
        )
        rotations = stored.value
        if train and self.redraw:
            rotations = jax.random.normal(self.make_rng("features"), shape)

        num_queries = query.shape[1]
        value = repeat_heads(value, num_heads)
        if decode:
            query, value, mask = remember(self, query, value, mask)
            known = jnp.arange(query.shape[1])[None] < mask.offset + num_queries
            valid = known if mask.valid is None else known & mask.valid
            mask = mask.replace(valid=valid)
        out = self._attend(
            jnp.swapaxes(query, 1, 2), jnp.swapaxes(value, 1, 2), rotations, mask, train
        )
        out = jnp.swapaxes(out, 1, 2)
        if decode:
            out = jax.lax.dynamic_slice_in_dim(out, mask.offset, num_queries, axis=1)
        return out.astype(value.dtype)

    def _attend(
        self,
        query: Float[Array, "batch heads length dim"],
        value: Float[Array, "batch heads length value_dim"],
        rotations: Float[Array, "heads dim rounds half_buckets"],
        mask: Mask,
        train: bool,
    ) -> Float[Array, "batch heads length value_dim"]:
        length = query.shape[2]
        size = min(self.chunk_size, length)
        added = -length % size

        def pad(x: Array, axis: int) -> Array:
            return jnp.pad(x, [(0, added if i == axis else 0) for i in range(x.ndim)])

        valid = jnp.ones((1, length), bool) if mask.valid is None else mask.valid
        valid, query, value = pad(valid, 1), pad(query, 2), pad(value, 2)
        buckets = _hash(jax.lax.stop_gradient(query), rotations, self.num_buckets)
        # Padding comes last, in a bucket of its own.
        last = math.prod(_factors(self.num_buckets))
        buckets = jnp.where(valid[:, None, None], buckets, last)
        order = jnp.argsort(buckets, axis=-1, stable=True)  # (b, h, rounds, length)
        sorting = order.reshape(*order.shape[:2], -1)

        def chunk(x: Array) -> Array:
            return x.reshape(*x.shape[:2], -1, size, *x.shape[3:])

        def with_previous(x: Array) -> Array:
            # As in the official code, the first chunk of a round sees the last one of
            # the round before, and that of the first round sees the last of all.
            if x.shape[2] == 1:
                return x
            return jnp.concatenate([x, jnp.roll(x, 1, axis=2)], axis=3)

        def sort(x: Array) -> Array:
            index = sorting if x.ndim == 3 else sorting[..., None]
            x = jnp.broadcast_to(x, (*sorting.shape[:2], *x.shape[2:]))
            return chunk(jnp.take_along_axis(x, index, axis=2))

        queries, values = sort(query), with_previous(sort(value))
        squares = jnp.sum(jnp.square(queries.astype(jnp.float32)), -1, keepdims=True)
        keys = queries * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
        keys = with_previous(keys.astype(queries.dtype))
        positions = chunk(sorting)
        of_queries, of_keys = positions[..., None], with_previous(positions)
        of_keys = of_keys[..., None, :]
        seen = with_previous(sort(valid[:, None]))[..., None, :]
        if mask.causal:
            seen = seen & (of_keys <= of_queries)
        if mask.segments is not None:
            segments = sort(pad(mask.segments[0], 1)[:, None])
            others = with_previous(segments)[..., None, :]
            seen = seen & (segments[..., None] == others)

        logits = jnp.einsum(
            "bhnqd,bhnkd->bhnqk", queries, keys, preferred_element_type=jnp.float32
        )
        logits *= self.scale(query.shape[-1])
        logits = jnp.where(of_queries == of_keys, -1e5, logits)
        logits = jnp.where(seen, logits, -1e30)
        largest = jax.lax.stop_gradient(logits.max(-1))
        weights = jnp.where(seen, jnp.exp(logits - largest[..., None]), 0)
        total = weights.sum(-1)
        total = jnp.where(total == 0, 1, total)  # what sees nothing gets zeros
        weights = Dropout(self.dropout_rate, name="dropout")(weights, train)
        out = jnp.einsum(
            "bhnqk,bhnkd->bhnqd",
            (weights / total[..., None]).astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )

        back = jnp.argsort(order, axis=-1)
        found = (largest + jnp.log(total)).reshape(order.shape)
        found = jnp.take_along_axis(found, back, axis=-1)
        out = out.reshape(*order.shape, -1)
        out = jnp.take_along_axis(out, back[..., None], axis=3)
        share = jax.nn.softmax(found, axis=2)  # of each round
        return (share[..., None] * out).sum(2)[:, :, :length]


def _factors(num_buckets: int | tuple[int, ...]) -> tuple[int, ...]:
    factors = num_buckets if isinstance(num_buckets, tuple) else (num_buckets,)
    if any(factor % 2 or factor < 2 for factor in factors):
        raise UserError(
            f"LSH(num_buckets={num_buckets}): buckets lie on both sides of a vector; "
            "choose even numbers"
        )
    return factors


def _hash(
    x: Float[Array, "batch heads length dim"],
    rotations: Float[Array, "heads dim rounds half_buckets"],
    num_buckets: int | tuple[int, ...],
) -> Int[Array, "batch heads rounds length"]:
    """The direction of [x R, -x R] that is nearest, for each round."""
    rotated = jnp.einsum("bhld,hdrs->bhrls", x.astype(jnp.float32), rotations)
    buckets, start, stride = 0, 0, 1
    for factor in _factors(num_buckets):
        part = rotated[..., start : start + factor // 2]
        nearest = jnp.argmax(jnp.concatenate([part, -part], axis=-1), axis=-1)
        buckets = buckets + stride * nearest
        start, stride = start + factor // 2, stride * factor
    return jnp.asarray(buckets)
