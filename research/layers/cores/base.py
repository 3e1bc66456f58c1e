"""What all attention cores share: who may see whom, and what decoding remembers."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

Bias = Callable[[Int[Array, "queries"], Int[Array, "keys"]], Float[Array, "..."]]
"""`bias(query positions, key positions) -> (heads, queries, keys)`, added to logits.

A pytree (`jax.tree_util.Partial` of a function and its arrays), so that one table can
serve every layer of a scan.
"""


class Mask(flax.struct.PyTreeNode):
    """Which keys a query sees, told in parts so that no core needs the whole square.

    Attributes:
      valid: of the keys, False for padding; None is for all valid.
      segments: of queries and keys, where several sequences are packed into one row: a
        query sees the keys of its own segment. In each row a segment is contiguous.
      offset: the position of the first query among the keys, while decoding.
      causal: no query sees a later key.
    """

    valid: Bool[Array, "batch keys"] | None = None
    segments: tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]] | None = None
    offset: ArrayLike = 0
    causal: bool = flax.struct.field(pytree_node=False, default=False)

    def dense(
        self, num_queries: int, num_keys: int
    ) -> Bool[Array, "batch 1 queries keys"] | None:
        """The whole square, True where seen, its batch 1 where rows agree.

        None where everything is seen.
        """
        parts = []
        if self.causal:
            queries, keys = self.positions(num_queries, num_keys)
            parts.append((keys[None, :] <= queries[:, None])[None, None])
        if self.valid is not None:
            parts.append(self.valid[:, None, None, :])
        if self.segments is not None:
            queries, keys = self.segments
            parts.append((queries[:, :, None] == keys[:, None, :])[:, None])
        if not parts:
            return None
        seen = parts[0]
        for part in parts[1:]:
            seen = seen & part
        shape = (seen.shape[0], 1, num_queries, num_keys)
        return jnp.broadcast_to(seen, shape)

    def positions(
        self, num_queries: int, num_keys: int
    ) -> tuple[Int[Array, "queries"], Int[Array, "keys"]]:
        """Where queries and keys stand in the row."""
        return jnp.asarray(self.offset) + jnp.arange(num_queries), jnp.arange(num_keys)


SEES_ALL = Mask()
"""Every query sees every key."""


@runtime_checkable
class Core(Protocol):
    """Mixes values by how queries match keys: a function, a record or a module.

    A core with parameters or random features is a linen module. One that cannot take a
    bias, a causal mask or `decode` says so with a `UserError`.
    """

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
        """`kv_heads` divides `heads`: each serves as many queries' heads in turn.

        With `decode` the keys and values are those of the positions that follow what
        the core has in its `cache` collection, and are added to it.
        """
        ...


class HasCore(nn.Module):
    """A module with a slot `core`, which is its own whoever else was given the same.

    Linen takes one instance that two modules were given for a part that they share: its
    parameters, and what it remembers while decoding. Like blocks are mostly given one.
    """

    def __post_init__(self):
        core = getattr(self, "core", None)
        if isinstance(core, nn.Module) and core.parent is None:
            object.__setattr__(self, "core", core.clone())
        super().__post_init__()


def repeat_heads(
    x: Float[Array, "batch keys kv_heads dim"], num_heads: int
) -> Float[Array, "batch keys heads dim"]:
    """Each key's or value's head as often as queries' heads share it."""
    return jnp.repeat(x, num_heads // x.shape[2], axis=2)


def remember(
    core: nn.Module, key: Array, value: Array, mask: Mask
) -> tuple[Array, Array, Mask]:
    """All keys and values so far, these included, and the mask that looks at them.

    They are kept in the core's `cache` collection, which is as long as the keys that it
    was initialised with, together with the position that comes next. A run past its end
    overwrites the last ones: the caller counts.
    """
    is_new = not core.has_variable("cache", "key")
    keys = core.variable("cache", "key", jnp.zeros, key.shape, key.dtype)
    values = core.variable("cache", "value", jnp.zeros, value.shape, value.dtype)
    index = core.variable("cache", "index", jnp.zeros, (), jnp.int32)
    if is_new:
        return key, value, mask
    start = index.value
    keys.value = jax.lax.dynamic_update_slice(keys.value, key, (0, start, 0, 0))
    values.value = jax.lax.dynamic_update_slice(values.value, value, (0, start, 0, 0))
    index.value = start + key.shape[1]
    return keys.value, values.value, mask.replace(offset=start, causal=True)
