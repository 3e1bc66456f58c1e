"""Attention that is exact inside chunks of a sequence, and linear across them."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from research.errors import UserError
from research.layers.cores.base import SEES_ALL, Bias, Core, HasCore, Mask
from research.layers.cores.counts import Count, seen_keys
from research.layers.cores.pointwise import Pointwise

_NO_SEGMENTS = "a row that is decoded is one sequence: leave segments out of its mask"


class MixedChunk(HasCore):
    """Mixed chunk attention: time and memory in proportion to the length.

    Hua et al. 2022, arXiv:2202.10447, section 3.2. With a sequence cut into chunks of
    `chunk_size`, a query of chunk g gets

        core(q, k, v of chunk g) + q' sum_h k'_h v_h / (number of keys in the sum),

    the sum over all positions, or, if causal, over those of the chunks before g. The
    first half of the dimensions of queries and keys is q and k, the other q' and k'.

    Segments and padding are those of every single token.
    Differs: the paper's pseudocode keeps whole chunks apart that share no segment, and
    lets the others see each other's padding and segments.

    Attributes:
      chunk_size: of the last chunk, as much as there is.
      core: inside a chunk; a bias is its alone, and sees positions in the chunk.
      count: the number of keys in the sum; how many there are, for a count that asks,
        is the length of the row, or, if causal, of a chunk.
    """

    branches: ClassVar[int] = 2
    """Of how many queries and keys each one is made."""

    chunk_size: int = 256
    core: Core = Pointwise()
    count: Count = seen_keys

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
        """With `decode`, what is remembered is a chunk and a sum, whatever the length.

        Raises:
          UserError: as many queries as keys are wanted, of dimensions that make two
            halves, and no segments when decoding.
        """
        if query.shape[1] != key.shape[1]:
            raise UserError(
                f"{query.shape[1]} queries and {key.shape[1]} keys: a sequence can mix"
                " its chunks with itself only, choose another core to attend to others"
            )
        if query.shape[-1] % 2:
            raise UserError(
                f"{query.shape[-1]} dimensions of queries and keys are not two halves,"
                " one for chunks and one across them: choose an even number"
            )
        if decode and self._remembers(query, key, value):
            if mask.segments is not None:
                raise UserError(_NO_SEGMENTS)
            return self._continue(query, key, value, mask.valid, bias)

        batch, length = query.shape[:2]
        tail = -length % self.chunk_size
        valid, segments = mask.valid, None
        if valid is None:
            valid = jnp.ones((1, length), bool)
        if mask.segments is not None:
            segments = self._chunks(mask.segments[0], tail)
        local_mask = Mask(causal=mask.causal)
        if mask.valid is not None or tail:
            everyone = jnp.broadcast_to(valid, (batch, length))
            local_mask = local_mask.replace(valid=_rows(self._chunks(everyone, tail)))
        if segments is not None:
            everyone = jnp.broadcast_to(segments, (batch, *segments.shape[1:]))
            local_mask = local_mask.replace(segments=(_rows(everyone),) * 2)

        query, key, value = (self._chunks(x, tail) for x in (query, key, value))
        (query, far_query), (key, far_key) = _halves(query), _halves(key)
        near = self.core(
            _rows(query),
            _rows(key),
            _rows(value),
            mask=local_mask,
            bias=bias,
            train=train,
        )
        far, seen = _far(
            far_query,
            *_repeated(far_key, value, query.shape[-2]),
            self._chunks(valid, tail),
            segments,
            mask.causal,
        )
        num_keys = self.chunk_size if mask.causal else length
        out = near.reshape(far.shape) + self._mean(far, seen, num_keys, value.dtype)
        return out.reshape(batch, -1, *out.shape[3:])[:, :length]

    def _chunks(self, x: Array, tail: int) -> Array:
        """(batch, length, ...) to (batch, chunks, chunk size, ...)."""
        x = jnp.pad(x, [(0, 0), (0, tail)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, self.chunk_size, *x.shape[2:])

    def _mean(self, far: Array, seen: Array, num_keys: int, dtype: DTypeLike) -> Array:
        count = jnp.broadcast_to(self.count(seen, num_keys), seen.shape)
        return (far / jnp.maximum(count, 1)[..., None, None]).astype(dtype)

    def _remembers(self, query: Array, key: Array, value: Array) -> bool:
        """Whether there is a cache; if not, there is now."""
        remembers = self.has_variable("cache", "index")
        batch, _, heads, dim = query.shape
        chunk = (batch, self.chunk_size, key.shape[2])
        total = (batch, heads, dim // 2, value.shape[-1])
        zeros = jnp.zeros
        # The keys and values of the chunk that is not full yet, then the sums of
        # products: of all full chunks, over how many keys, and of the one that is not.
        self.variable("cache", "key", zeros, (*chunk, dim // 2), key.dtype)
        self.variable("cache", "value", zeros, (*chunk, value.shape[-1]), value.dtype)
        self.variable("cache", "valid", zeros, chunk[:2], bool)
        self.variable("cache", "sum", zeros, total, jnp.float32)
        self.variable("cache", "seen", zeros, (batch,), jnp.float32)
        self.variable("cache", "open_sum", zeros, total, jnp.float32)
        self.variable("cache", "index", zeros, (), jnp.int32)
        return remembers

    def _continue(
        self,
        query: Array,
        key: Array,
        value: Array,
        valid: Array | None,
        bias: Bias | None,
    ) -> Array:
        """The positions that follow those in the cache."""
        size, (batch, length, heads, _) = self.chunk_size, query.shape
        index = self.get_variable("cache", "index")
        filled = index % size
        num_chunks = (size - 1 + length - 1) // size + 1  # as many as can be touched

        def place(new: Array, held: Array | None = None) -> Array:
            """As chunks: what is new after what the first chunk held."""
            row = jnp.zeros((batch, num_chunks * size, *new.shape[2:]), new.dtype)
            if held is not None:
                row = row.at[:, :size].set(held)
            row = jax.lax.dynamic_update_slice_in_dim(row, new, filled, axis=1)
            return row.reshape(batch, num_chunks, size, *new.shape[2:])

        if valid is None:
            valid = jnp.ones((batch, length), bool)
        else:
            valid = jax.lax.dynamic_slice_in_dim(valid, index, length, axis=1)
            valid = jnp.broadcast_to(valid, (batch, length))
        (query, far_query), (key, far_key) = _halves(query), _halves(key)
        far_key, far_value = _repeated(far_key, value, heads)
        far_key = jnp.where(valid[:, :, None, None], far_key, 0)
        keys = place(key, self.get_variable("cache", "key"))
        values = place(value, self.get_variable("cache", "value"))
        valids = place(valid, self.get_variable("cache", "valid"))
        if length == 1:  # one query needs no chunk of its own
            offset, query, far_query = filled, query[:, None], far_query[:, None]
            sums = _sums(far_key[:, None], far_value[:, None])
        else:
            offset, query, far_query = 0, place(query), place(far_query)
            sums = _sums(place(far_key), place(far_value))
        sums = sums.at[:, 0].add(self.get_variable("cache", "open_sum"))
        # Up to each chunk, without it.
        totals = _running(self.get_variable("cache", "sum"), sums)
        seen = _running(self.get_variable("cache", "seen"), valids.sum(-1))

        near = self.core(
            _rows(query),
            _rows(keys),
            _rows(values),
            mask=Mask(valid=_rows(valids), offset=offset, causal=True),
            bias=bias,
        )
        far = _asked(far_query, totals[:, :-1])
        out = near.reshape(far.shape) + self._mean(
            far, jnp.broadcast_to(seen[:, :-1, None], far.shape[:3]), size, value.dtype
        )
        out = out.reshape(batch, -1, *out.shape[3:])
        if length > 1:
            out = jax.lax.dynamic_slice_in_dim(out, filled, length, axis=1)

        full = (filled + length) // size

        def at_full(x: Array) -> Array:
            """The last one, where all are full: its contents are overwritten."""
            return jax.lax.dynamic_index_in_dim(x, full, axis=1, keepdims=False)

        open_sum = jnp.where(full < num_chunks, at_full(sums), 0)
        for name, new in (
            ("key", at_full(keys)),
            ("value", at_full(values)),
            ("valid", at_full(valids)),
            ("sum", at_full(totals)),
            ("seen", at_full(seen)),
            ("open_sum", open_sum),
            ("index", index + length),
        ):
            self.put_variable("cache", name, new)
        return out


def _halves(x: Array) -> tuple[Array, Array]:
    near, far = jnp.split(x, 2, axis=-1)
    return near, far


def _rows(x: Array) -> Array:
    """(batch, chunks, ...) to (batch * chunks, ...)."""
    return x.reshape(-1, *x.shape[2:])


def _repeated(key: Array, value: Array, num_heads: int) -> tuple[Array, Array]:
    """A head of keys and values for each of the queries'; axis -2 is the heads'."""
    times = num_heads // key.shape[-2]
    return jnp.repeat(key, times, axis=-2), jnp.repeat(value, times, axis=-2)


def _sums(key: Array, value: Array) -> Array:
    """Each chunk's sum of products."""
    return jnp.einsum(
        "bgkhd,bgkhf->bghdf", key, value, preferred_element_type=jnp.float32
    )


def _asked(query: Array, sums: Array) -> Array:
    """What queries of each chunk get from a sum of products."""
    return jnp.einsum(
        "bgqhd,bghdf->bgqhf",
        query,
        sums.astype(query.dtype),
        preferred_element_type=jnp.float32,
    )


def _running(first: Array, then: Array) -> Array:
    """`first`, and it with the first of `then` added, and so on."""
    return jnp.cumsum(jnp.concatenate([first[:, None], then], axis=1), axis=1)


def _far(
    query: Float[Array, "batch chunks size heads dim"],
    key: Float[Array, "batch chunks size heads dim"],
    value: Float[Array, "batch chunks size heads value_dim"],
    valid: Bool[Array, "#batch chunks size"],
    segments: Int[Array, "#batch chunks size"] | None,
    causal: bool,
) -> tuple[
    Float[Array, "batch chunks size heads value_dim"],
    Float[Array, "#batch #chunks #size"],
]:
    """Sums over keys of q k v, and over how many keys."""
    chunk = jnp.arange(query.shape[1])
    before = (chunk[None, :] < chunk[:, None])[None]

    def reached(reach: Array, belongs: Array) -> tuple[Array, Array]:
        """From the keys that belong, in the chunks that each chunk reaches."""
        weights = reach.astype(jnp.float32)
        sums = _sums(jnp.where(belongs[..., None, None], key, 0), value)
        sums = jnp.einsum("bgn,bnhdf->bghdf", weights, sums)
        seen = jnp.einsum("bgn,bn->bg", weights, belongs.sum(-1, dtype=jnp.float32))
        return _asked(query, sums), seen[..., None]

    if segments is None:
        # All of a row asks one and the same sum, if not causal.
        return reached(before if causal else jnp.ones((1, 1, chunk.size)), valid)

    # A segment is contiguous: if it goes on into a chunk, it is that one's first, and
    # the last of where it comes from.
    first, last = segments[..., 0], segments[..., -1]

    def through(reach: Array, start: Array, end: Array) -> tuple[Array, Array]:
        """From `start`'s segments of other chunks to `end`'s of this one."""
        goes_on = reach & (start[:, None, :] == end[:, :, None])
        total, seen = reached(goes_on, valid & (segments == start[..., None]))
        asks = segments == end[..., None]
        return jnp.where(asks[..., None, None], total, 0), jnp.where(asks, seen, 0)

    total, seen = through(before, last, first)
    if causal:
        return total, seen
    later, seen_later = through(before.swapaxes(1, 2), first, last)
    same = segments[..., :, None] == segments[..., None, :]
    same = same & valid[..., None, :]
    products = jnp.einsum(
        "bgqhd,bgkhd->bghqk", query, key, preferred_element_type=jnp.float32
    )
    products = jnp.where(same[:, :, None], products, 0).astype(value.dtype)
    own = jnp.einsum(
        "bghqk,bgkhf->bgqhf", products, value, preferred_element_type=jnp.float32
    )
    return total + later + own, seen + seen_later + same.sum(-1, dtype=jnp.float32)
