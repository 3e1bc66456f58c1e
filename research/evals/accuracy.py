"""How often the right class is among those that a classifier holds likeliest."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from research.evals.base import Context
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.image_classification import rank
from research.train.metrics import pool


@runtime_checkable
class Classifier(Protocol):
    """A task that tells classes."""

    def logits(
        self,
        variables: Variables,
        image: UInt8[Array, "batch height width channels"],
    ) -> Float[Array, "batch classes"]: ...


@dataclass(frozen=True)
class Accuracy:
    """`top1`, `top5`, ...: how often `label` is among so many likeliest classes.

    Counted over all examples of a split, so that a ragged last batch weighs what it
    holds.

    Attributes:
      split: of the data.
      tops: the numbers of classes; one that is no less than there are is left out.
      batch_size: of the images.
      every: steps between two calls of the loop; 0 is once, at the end.
    """

    split: str = "test"
    tops: tuple[int, ...] = (1, 5)
    batch_size: int = 128
    every: int = 0

    def __call__(
        self, task: Classifier, variables: Variables, context: Context
    ) -> dict[str, float]:
        return pool(self._parts(task, variables, context))

    def _parts(
        self, task: Classifier, variables: Variables, context: Context
    ) -> Iterator[Metrics]:
        for batch in context.batches(self.split, self.batch_size):
            yield _hits(task, self.tops, variables, batch)


# The cache of `jit` is by task and by sharding: later calls compile nothing.
@partial(jax.jit, static_argnums=(0, 1))
def _hits(
    task: Classifier, tops: tuple[int, ...], variables: Variables, batch: Batch
) -> Metrics:
    logits = task.logits(variables, batch["image"])
    ranks, mask = rank(logits, batch["label"]), batch["mask"]
    return {
        f"top{top}": (jnp.sum(mask * (ranks < top)), jnp.sum(mask))
        for top in tops
        if top < logits.shape[-1]
    }
