"""Attention whose weights are inner products of features, in time linear in length.

Katharopoulos et al. 2020, arXiv:2006.16236: where the weight of a key is
phi(q) . psi(k), the sums over keys of psi(k) v and of psi(k) stand for all of them. One
result in three forms: `quadratic` spells the weights out; `attend` spells them out
inside a XX

Everything is float32. Features may have a scale of their own, a logarithm for each
position; then they are taken relative to the largest scale of the keys that a query
sees, as in a softmax. So exponentials of any size are safe, and nothing depends on a
key that its query does not see.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from research.layers.cores.base import Mask

NO_SCALE = -1e30
"""Of no keys at all: finite, so that a difference of two is a number."""

Segments = tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]]


class Features(NamedTuple):
    """Of queries or of keys: `values * exp(log_scale)`.

    Attributes:
      values: (batch, length, heads, features).
      log_scale: (batch, length, heads), a constant to derivatives; None is for zeros.
    """

    values: Array
    log_scale: Array | None = None


class Mixed(NamedTuple):
    """What queries see, in units of `exp(log_scale)` where that is not None.

    Attributes:
      numerator: (batch, queries, heads, value_dim), values times weights.
      denominator: (batch, queries, heads), the sum of the weights.
      log_scale: (batch, queries, heads), the largest of the keys seen.
    """

    numerator: Array
    denominator: Array
    log_scale: Array | None


class Sums(NamedTuple):
    """Over keys, in units of `exp(log_scale)` where that is not None.

    Attributes:
      products: (batch, kv_heads, features, value_dim), features times values.
      features: (batch, kv_heads, features).
      log_scale: (batch, kv_heads).
    """

    products: Array
    features: Array
    log_scale: Array | None


def quadratic(
    query: Float[Array, "batch queries heads features"],
    key: Features,
    value: Float[Array, "batch keys kv_heads value_dim"],
    mask: Mask,
) -> Mixed:
    """By the weights of all pairs, in time and memory quadratic in length."""
    num_queries, num_keys = query.shape[1], value.shape[1]
    seen = mask.dense(num_queries, num_keys)
    if seen is None:
        seen = jnp.ones((1, 1, num_queries, num_keys), bool)
    grouped = query.reshape(*query.shape[:2], value.shape[2], -1, query.shape[-1])
    weights = jnp.einsum("bqhgr,bkhr->bhgqk", grouped, key.values)
    scale = None
    if key.log_scale is not None:
        scales = jnp.swapaxes(key.log_scale, 1, 2)
        weights, scale = _relative(weights, scales, seen, jnp.full((1, 1, 1), NO_SCALE))
    weights = jnp.where(seen[:, :, None], weights, 0)
    numerator = jnp.einsum("bhgqk,bkhd->bqhgd", weights, value)
    return _ungroup(numerator, jnp.moveaxis(weights.sum(-1), 3, 1), scale)


def attend(
    query: Float[Array, "batch queries heads features"],
    key: Features,
    value: Float[Array, "batch keys kv_heads value_dim"],
    mask: Mask,
    chunk_size: int,
) -> Mixed:
    """As `quadratic`, in time and memory linear in length.

    But for queries that do not stand where the keys do, and are causal, or packed
    several to a row: they take quadratic time, and linear memory. `mask.offset` is only
    read where there are fewer queries than keys.
    """
    aligned = query.shape[1] == value.shape[1]
    segments = mask.segments
    valid_key = _drop(key, mask.valid)
    if mask.causal and aligned:
        return _scan(query, valid_key, value, segments, chunk_size)[0]
    if not mask.causal and segments is None:
        return _look(query, _total(valid_key, value))
    if mask.causal or segments is None or not aligned:
        return _by_rows(query, key, value, mask, chunk_size)
    # Even where lengths agree, queries and keys may be of different sequences.
    return lax.cond(
        jnp.all(segments[0] == segments[1]),
        lambda: _both_ways(query, valid_key, value, segments, chunk_size),
        lambda: _by_rows(query, key, value, mask, chunk_size),
    )


def advance(core: nn.Module, length: int) -> Int[Array, ""] | None:
    """The position of the first of `length` new keys, in decoding, and counts them.

    None at the first call, which makes the core's `cache` and is an ordinary one.
    """
    is_new = not core.has_variable("cache", "index")
    index = core.variable("cache", "index", jnp.zeros, (), jnp.int32)
    if is_new:
        return None
    start = index.value
    index.value = start + length
    return start


def mix(
    core: nn.Module,
    query: Float[Array, "batch queries heads features"],
    key: Features,
    value: Float[Array, "batch keys kv_heads value_dim"],
    mask: Mask,
    chunk_size: int,
    decode: bool,
    start: Int[Array, ""] | None,
    name: str = "",
) -> Mixed:
    """`attend` or, with `decode`, the same with all keys so far, and causal.

    Args:
      core: keeps in its `cache` the sums, of constant size, that stand for keys so far.
      query, key: features.
      value: what is mixed.
      mask: with `decode` only `valid` is read, of these keys or of all there will be.
      chunk_size: of the positions that are taken at once.
      decode: whether the keys follow those of the calls before.
      start: of `advance`; with `decode`, None makes the cache, in an ordinary call.
      name: before those of the cache's variables.
    """
    value = value.astype(jnp.float32)
    if not decode:
        return attend(query, key, value, mask, chunk_size)
    shape = (len(value), value.shape[2], key.values.shape[-1])
    shapes = {"products": (*shape, value.shape[-1]), "features": shape}
    if key.log_scale is not None:
        shapes["log_scale"] = shape[:2]
    cache = {
        part: core.variable("cache", name + part, jnp.zeros, shape)
        for part, shape in shapes.items()
    }
    if start is None:
        return attend(query, key, value, mask, chunk_size)
    valid = mask.valid
    if valid is not None and valid.shape[1] != value.shape[1]:
        valid = lax.dynamic_slice_in_dim(valid, start, value.shape[1], axis=1)
    before = Sums(cache["products"].value, cache["features"].value, None)
    if key.log_scale is not None:
        # A cache begins as zeros, which is the scale of some keys, not of none.
        empty = (before.features == 0).all(-1)
        scale = jnp.where(empty, NO_SCALE, cache["log_scale"].value)
        before = before._replace(log_scale=scale)
    key = _drop(key, valid)
    mixed, after = _scan(query, key, value, None, chunk_size, before=before)
    for part, variable in cache.items():
        variable.value = getattr(after, part)
    return mixed


def _drop(key: Features, valid: Bool[Array, "batch keys"] | None) -> Features:
    """Keys of padding add nothing."""
    if valid is None:
        return key
    values = jnp.where(valid[:, :, None, None], key.values, 0)
    if key.log_scale is None:
        return Features(values)
    return Features(values, jnp.where(valid[:, :, None], key.log_scale, NO_SCALE))


def _relative(
    weights: Float[Array, "batch kv_heads group queries keys"],
    scales: Float[Array, "batch kv_heads keys"],
    seen: Bool[Array, "#batch 1 queries keys"],
    before: Float[Array, "#batch #kv_heads #queries"],
) -> tuple[Array, Float[Array, "batch kv_heads queries"]]:
    """Weights in units of the largest scale that is seen, here or before."""
    scales = jnp.where(seen, scales[:, :, None, :], NO_SCALE)
    largest = jnp.maximum(scales.max(-1), before)
    return weights * jnp.exp(scales - largest[..., None])[:, :, None], largest


def _ungroup(numerator: Array, denominator: Array, scale: Array | None) -> Mixed:
    """From (b, q, h, g, d), (b, q, h, g) and (b, h, q)."""
    batch, length, kv_heads, group = denominator.shape
    if scale is not None:
        scale = jnp.repeat(jnp.swapaxes(scale, 1, 2), group, axis=2)
    heads = (batch, length, kv_heads * group)
    return Mixed(numerator.reshape(*heads, -1), denominator.reshape(heads), scale)


def _total(key: Features, value: Array) -> Sums:
    values, scale = key.values, None
    if key.log_scale is not None:
        scale = key.log_scale.max(1)
        values = values * jnp.exp(key.log_scale - scale[:, None])[..., None]
    return Sums(jnp.einsum("bkhr,bkhd->bhrd", values, value), values.sum(1), scale)


def _look(query: Array, sums: Sums) -> Mixed:
    """Every query sees all the keys of the sums."""
    query = query.reshape(*query.shape[:2], sums.features.shape[1], -1, query.shape[-1])
    numerator = jnp.einsum("bqhgr,bhrd->bqhgd", query, sums.products)
    denominator = jnp.einsum("bqhgr,bhr->bqhg", query, sums.features)
    scale = sums.log_scale
    if scale is not None:
        scale = jnp.broadcast_to(scale[:, :, None], (*scale.shape, query.shape[1]))
    return _ungroup(numerator, denominator, scale)


def _chunks(x: Array, size: int, filler: float | None = 0) -> Array:
    """(batch, length, ...) -> (chunks, batch, size, ...); None repeats the last."""
    margin = [(0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)]
    if filler is None:
        x = jnp.pad(x, margin, mode="edge")
    else:
        x = jnp.pad(x, margin, constant_values=filler)
    x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def _unchunk(x: Array, length: int) -> Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _by_rows(
    query: Array, key: Features, value: Array, mask: Mask, chunk_size: int
) -> Mixed:
    """`quadratic` for a chunk of queries at a time."""
    length = query.shape[1]
    size = min(chunk_size, length)
    offsets = jnp.arange(0, length, size) + mask.offset
    segments = None if mask.segments is None else _chunks(mask.segments[0], size)

    @jax.checkpoint
    def one_chunk(chunk: tuple[Array, Array, Array | None]) -> Mixed:
        query, offset, segments = chunk
        here = mask.replace(offset=offset)
        if segments is not None and mask.segments is not None:
            here = here.replace(segments=(segments, mask.segments[1]))
        return quadratic(query, key, value, here)

    mixed = lax.map(one_chunk, (_chunks(query, size), offsets, segments))
    return jax.tree.map(lambda x: _unchunk(x, length), mixed)


def _both_ways(
    query: Array, key: Features, value: Array, segments: Segments, chunk_size: int
) -> Mixed:
    """Of a query's own segment the keys up to it, and then those after it."""

    def flip(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.flip(x, 1), tree)

    first, _ = _scan(query, key, value, segments, chunk_size)
    query, key, value, segments = flip((query, key, value, segments))
    second = flip(_scan(query, key, value, segments, chunk_size, strict=True)[0])
    if first.log_scale is None or second.log_scale is None:
        return jax.tree.map(jnp.add, first, second)
    scale = jnp.maximum(first.log_scale, second.log_scale)
    of_first = jnp.exp(first.log_scale - scale)
    of_second = jnp.exp(second.log_scale - scale)
    return Mixed(
        first.numerator * of_first[..., None] + second.numerator * of_second[..., None],
        first.denominator * of_first + second.denominator * of_second,
        scale,
    )


def _scan(
    query: Array,
    key: Features,
    value: Array,
    segments: Segments | None,
    chunk_size: int,
    strict: bool = False,
    before: Sums | None = None,
) -> tuple[Mixed, Sums]:
    """Chunk by chunk, each query with the keys up to it; `strict` leaves its own out.

    Also returns the sums over all keys, or those of the last segment.
    """
    length, kv_heads = query.shape[1], value.shape[2]
    size = min(chunk_size, length)
    query = query.reshape(*query.shape[:2], kv_heads, -1, query.shape[-1])
    chunks = {
        "query": jnp.moveaxis(_chunks(query, size), 2, 4),
        "key": jnp.moveaxis(_chunks(key.values, size), 2, 3),
        "value": jnp.moveaxis(_chunks(value, size), 2, 3),
    }
    if key.log_scale is not None:
        scales = _chunks(key.log_scale, size, NO_SCALE)
        chunks["scale"] = jnp.swapaxes(scales, 2, 3)
    if segments is not None:
        chunks["segments"] = _chunks(segments[0], size, None)
    if before is None:
        shape = (len(value), kv_heads, key.values.shape[-1])
        before = Sums(
            jnp.zeros((*shape, value.shape[-1])),
            jnp.zeros(shape),
            None if key.log_scale is None else jnp.full(shape[:2], NO_SCALE),
        )
    # No key is of the segment before the first, but it has sums of zero.
    segment = None if segments is None else segments[0][:, 0]
    earlier = jnp.tri(size, k=-1 if strict else 0, dtype=bool)[None, None]

    def step(
        carry: tuple[Sums, Array | None], chunk: dict[str, Array]
    ) -> tuple[tuple[Sums, Array | None], tuple[Array, Array, Array | None]]:
        sums, segment = carry
        query, key, value = chunk["query"], chunk["key"], chunk["value"]
        seen, scale, last = earlier, None, None
        looks = jnp.ones((1, 1, size))  # how much of the sums each query sees
        counts = jnp.ones((1, 1, size))  # how much of each key the sums get
        keeps = jnp.ones((1, 1))  # how much of the sums is left
        if segment is not None:
            own = chunk["segments"]
            last = own[:, -1]
            seen = seen & (own[:, None, :, None] == own[:, None, None, :])
            looks = looks * (own == segment[:, None])[:, None]
            counts = counts * (own == last[:, None])[:, None]
            keeps = keeps * (segment == last)[:, None]
        weights = jnp.einsum("bhgqr,bhkr->bhgqk", query, key)
        log_scale = None
        if sums.log_scale is not None:
            scales = jnp.where(counts > 0, chunk["scale"], NO_SCALE)
            kept = jnp.where(keeps > 0, sums.log_scale, NO_SCALE)
            log_scale = jnp.maximum(kept, scales.max(-1))
            counts = counts * jnp.exp(scales - log_scale[..., None])
            keeps = keeps * jnp.exp(kept - log_scale)
            looked = jnp.where(looks > 0, sums.log_scale[..., None], NO_SCALE)
            weights, scale = _relative(weights, chunk["scale"], seen, looked)
            looks = looks * jnp.exp(looked - scale)
        weights = jnp.where(seen[:, :, None], weights, 0)
        numerator = jnp.einsum("bhgqk,bhkd->bhgqd", weights, value)
        query = query * looks[:, :, None, :, None]
        numerator += jnp.einsum("bhgqr,bhrd->bhgqd", query, sums.products)
        denominator = weights.sum(-1)
        denominator += jnp.einsum("bhgqr,bhr->bhgq", query, sums.features)
        key = key * counts[..., None]
        sums = Sums(
            sums.products * keeps[..., None, None]
            + jnp.einsum("bhkr,bhkd->bhrd", key, value),
            sums.features * keeps[..., None] + key.sum(2),
            log_scale,
        )
        return (sums, last), (numerator, denominator, scale)

    (after, _), (numerator, denominator, scale) = lax.scan(
        jax.checkpoint(step), (before, segment), chunks
    )
    numerator = _unchunk(jnp.moveaxis(numerator, 4, 2), length)
    denominator = _unchunk(jnp.moveaxis(denominator, 4, 2), length)
    if scale is not None:
        scale = jnp.swapaxes(_unchunk(jnp.swapaxes(scale, 2, 3), length), 1, 2)
    return _ungroup(numerator, denominator, scale), after
