"""The training state, what of it moves, and how it is born.

Only the parameters that `trainable` matches have gradients, optimizer state and an
average; the others are carried along. A tree of the moving leaves is the parameter
tree with `None` in the place of each frozen leaf, which JAX takes for an empty
subtree, so every `jax.tree.map` over it touches what moves and nothing else.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from research.errors import UserError
from research.tasks.base import Batch, Task
from research.train.sharding import path_name


class TrainState(flax.struct.PyTreeNode):
    """All that a run carries from step to step, and all that a checkpoint holds.

    `step` counts the batches consumed, `skipped` those whose update was withheld
    because the loss or a gradient was not finite. `ema` is None without averaging.
    `extra` holds the other collections of the task's variables (`batch_stats`, ...).
    The leaves are arrays, or their shapes, or their shardings.
    """

    step: Any
    skipped: Any
    params: Any
    opt_state: Any
    ema: Any
    extra: Any

    def variables(self, average: bool = False) -> dict[str, Any]:
        """The task's variables, with averaged parameters if asked and if kept."""
        params = self.params
        if average and self.ema is not None:
            params = merge(self.ema, params)
        return {"params": params, **self.extra}


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of the moving parameters, from their initial values.

    With `warmup`, the rate at update n is `min(rate, (1 + n) / (10 + n))`.
    """

    rate: float = 0.9999
    warmup: bool = False

    def __call__(self, average: Any, params: Any, step: ArrayLike) -> Any:
        """The average after the update that followed `step` updates."""
        rate = jnp.asarray(self.rate)
        if self.warmup:
            rate = jnp.minimum(rate, (2.0 + step) / (11.0 + step))
        return jax.tree.map(lambda a, p: a + (1 - rate) * (p - a), average, params)


def split(params: Any, trainable: str) -> tuple[Any, Any]:
    """`(moving, frozen)`: where `trainable`, a pattern, is found in a leaf's path.

    Raises:
      UserError: no path matches.
    """
    moves = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(trainable, path_name(path)) is not None, params
    )
    if not any(jax.tree.leaves(moves)):
        raise UserError(
            f"trainable={trainable!r} matches no parameter: patterns are searched for "
            "in paths such as "
            f"{path_name(jax.tree_util.tree_leaves_with_path(params)[0][0])!r}"
        )
    moving = jax.tree.map(lambda move, leaf: leaf if move else None, moves, params)
    frozen = jax.tree.map(lambda move, leaf: None if move else leaf, moves, params)
    return moving, frozen


def merge(moving: Any, frozen: Any) -> Any:
    """The inverse of `split`; a leaf of `moving` wins."""
    return jax.tree.map(
        lambda a, b: b if a is None else a,
        moving,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )


def make_init(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    trainable: str = "",
    ema: Ema | None = None,
) -> Callable[[jax.Array, Batch], TrainState]:
    """`init(rng, batch) -> TrainState` at step zero; pure, for `eval_shape` too."""

    def init(rng: jax.Array, batch: Batch) -> TrainState:
        extra = dict(task.init(rng, batch))
        params = extra.pop("params")
        moving, _ = split(params, trainable)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(moving),
            # A copy: a donated buffer may not appear twice.
            ema=None if ema is None else jax.tree.map(jnp.copy, moving),
            extra=extra,
        )

    return init
