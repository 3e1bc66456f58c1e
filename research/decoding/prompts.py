"""What all decoding starts from: a model as a step function, its state, and prompts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from research.errors import UserError

State = Any
"""A pytree of arrays that a step gives back with the same shapes."""

Step = Callable[[State, Int[Array, "rows"]], tuple[State, Float[Array, "rows vocab"]]]
"""`(state, token) -> (state, logits)`: takes in the token at each row's next position,
and tells the logits of the one after it."""

Reorder = Callable[[State, Int[Array, "chosen"]], State]
"""`(state, index) -> state`, whose row i is row `index[i]`; it may have more rows."""


def take_rows(state: State, index: Int[Array, "chosen"], axes: Any = 0) -> State:
    """The default `Reorder`: takes from every leaf along its batch axis.

    Args:
      state: any.
      index: of the wanted rows.
      axes: the batch axis of the leaves: one for all, or a tree whose leaves stand for
        whole subtrees of the state, such as `{"cache": 1, "encoded": 0}` where `cache`
        has a leading layer axis. Leaves without that axis, such as a position that all
        rows share, stay.
    """

    def take(leaf: Array, axis: int) -> Array:
        return leaf if leaf.ndim <= axis else jnp.take(leaf, index, axis=axis)

    return jax.tree.map(
        lambda axis, part: jax.tree.map(lambda leaf: take(leaf, axis), part),
        axes,
        state,
    )


class Prompts(NamedTuple):
    """What every row has to begin with, and how long it may become.

    Attributes:
      tokens: each row's prompt, then padding up to the longest allowed.
      lengths: of the prompts.
      limits: of prompt and continuation together.
    """

    tokens: Int[Array, "rows length"]
    lengths: Int[Array, "rows"]
    limits: Int[Array, "rows"]

    def forced(self, position: Int[Array, ""]) -> Bool[Array, "rows"]:
        """Which rows have a token of their prompt here."""
        return position < self.lengths

    def ends(
        self, position: Int[Array, ""], token: Int[Array, "rows *any"], eos: int | None
    ) -> Bool[Array, "rows *any"]:
        """Which tokens are the last of their row: chosen, and the end or at the limit.

        An end of sequence within a prompt does not count.
        """
        if eos is None:
            is_end = jnp.zeros(token.shape, bool)
        else:
            is_end = token == eos
        per_row = (token.shape[0], *(1,) * (token.ndim - 1))
        at_limit = (position + 1 >= self.limits).reshape(per_row)
        return (is_end | at_limit) & ~self.forced(position).reshape(per_row)


def make_prompts(
    prompt: Int[Array, "rows prompt"],
    lengths: Int[Array, "rows"] | None,
    limits: Int[Array, "rows"] | None,
    *,
    max_length: int,
    start: int,
    pad: int,
) -> Prompts:
    """Prompts in arrays of the final size.

    Args:
      prompt: tokens, followed by anything beyond each row's length.
      lengths: default the whole width.
      limits: default `max_length`.
      max_length: of what comes out.
      start: tokens of every prompt that the state has taken in already.
      pad: what stands beyond a row's tokens.

    Raises:
      UserError: sizes that do not fit together. Lengths are looked at only where they
        are known, which they are not under `jax.jit`.
    """
    rows, width = prompt.shape
    if not rows or not width:
        raise UserError(
            f"prompts of shape {prompt.shape}: expected at least one row, and in each "
            "one token, such as the one that begins every sequence"
        )
    if max_length <= width:
        raise UserError(
            f"max_length={max_length} counts the prompt too, which has {width} tokens: "
            "expected more"
        )
    if not 0 <= start < width:
        raise UserError(
            f"start={start}: a state may have taken in from 0 to {width - 1} tokens of "
            f"prompts of {width}; the last one is fed here"
        )
    if lengths is None:
        lengths = jnp.full(rows, width, jnp.int32)
    elif not isinstance(lengths, Tracer):
        known = np.asarray(lengths)
        if known.min() <= start or known.max() > width:
            raise UserError(
                f"prompt lengths {known.tolist()}: expected from {start + 1} to {width}"
            )
    if limits is None:
        limits = jnp.full(rows, max_length, jnp.int32)
    inside = jnp.arange(width)[None, :] < lengths[:, None]
    tokens = jnp.where(inside, prompt, pad).astype(jnp.int32)
    tokens = jnp.pad(tokens, ((0, 0), (0, max_length - width)), constant_values=pad)
    return Prompts(tokens, lengths, jnp.minimum(limits, max_length))
