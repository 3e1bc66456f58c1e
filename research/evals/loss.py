"""The task's own loss on examples that it was not trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax

from research.evals.base import Context
from research.tasks.base import Batch, Metrics, Task, Variables
from research.train.metrics import pool


@dataclass(frozen=True)
class HeldOutLoss:
    """Every metric of `task.loss` over one split, in evaluation mode.

    Totals and counts are added up over all batches, so a ragged last batch weighs what
    it holds. A loss that draws noise is averaged over `num_rounds` passes with
    different draws, the same at every call.
    """

    split: str = "test"
    batch_size: int = 128
    num_rounds: int = 1
    every: int = 0

    def __call__(
        self, task: Task, variables: Variables, context: Context
    ) -> dict[str, float]:
        return pool(self._parts(task, variables, context))

    def _parts(
        self, task: Task, variables: Variables, context: Context
    ) -> Iterator[Metrics]:
        rng = jax.random.key(context.seed)
        for round in range(self.num_rounds):
            batches = context.batches(self.split, self.batch_size)
            for index, batch in enumerate(batches):
                key = jax.random.fold_in(jax.random.fold_in(rng, round), index)
                yield _metrics(task, variables, batch, key)


# The cache of `jit` is by task and by sharding: later calls compile nothing.
@partial(jax.jit, static_argnums=0)
def _metrics(task: Task, variables: Variables, batch: Batch, rng: jax.Array) -> Metrics:
    _, (metrics, _) = task.loss(variables, batch, rng, False)
    return metrics
