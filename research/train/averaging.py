"""The mean of several checkpoints of one run."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.errors import UserError
from research.train.checkpoints import CheckpointStore, complete_steps, require
from research.train.state import TrainState


def mean_variables(
    store: CheckpointStore, step: int, num: int, target: Any, average: bool
) -> dict[str, Any]:
    """The task's variables at `step`, their parameters the mean of `num` checkpoints.

    These are the newest up to `step`, it included; Vaswani et al. (2017,
    arXiv:1706.03762, section 6.1) translated with the mean of the last 5, ten minutes
    apart. Other collections, such as the statistics of batches, are those of `step`.
    The mean is taken in float32, on the devices, one checkpoint after another; that of
    equal ones is the same to the bit.

    Args:
      store: of the run.
      step: a checkpoint of it.
      num: at least 1.
      target: of the states, as in `store.restore`.
      average: of the averaged parameters, where the run keeps them.

    Raises:
      UserError: there are not so many checkpoints, or one of them is damaged.
    """
    if num < 1:
        raise UserError(f"the mean of {num} checkpoints: expected at least 1")
    steps = [other for other in complete_steps(store.folder) if other <= step]
    if len(steps) < num:
        raise UserError(
            f"the mean of {num} checkpoints is asked for, but {store.folder} has "
            f"{len(steps)} up to step {step}: {steps}; a run keeps more with "
            "checkpoints.keep_last"
        )

    def read(step: int) -> dict[str, Any]:
        state: TrainState = store.restore(require(store.folder, step), target)
        return state.variables(average)

    variables = read(step)
    if num == 1:
        return variables
    mean = jax.tree.map(_widen, variables["params"])
    for count, other in enumerate(reversed(steps[-num:-1]), 2):
        mean = _add(mean, read(other)["params"], count)
    params = jax.tree.map(lambda m, p: m.astype(p.dtype), mean, variables["params"])
    return {**variables, "params": params}


def _widen(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


@partial(jax.jit, donate_argnums=0)
def _add(mean: Any, params: Any, count: jax.Array) -> Any:
    # A step towards each: where all are equal nothing is rounded.
    return jax.tree.map(lambda m, p: m + (p.astype(m.dtype) - m) / count, mean, params)
