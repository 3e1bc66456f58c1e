"""What the loop calls to judge a model, and what it tells about the run."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from research.data.loader import Data
from research.tasks.base import Variables
from research.train.sharding import local_rows, to_global


@dataclass(frozen=True)
class Context:
    """The run that an evaluator works in.

    Attributes:
      data: sources, transforms and splits.
      mesh: the devices; batches are split over its batch axes.
      step: optimizer steps that made the variables.
      seed: of all that an evaluator draws. It does not depend on the step, so two
        evaluations of one run see the same noise and differ by the model alone.
      folder: where pictures and other files go; it need not exist yet.
    """

    data: Data
    mesh: Mesh
    step: int
    seed: int
    folder: Path

    def batches(
        self, split: str, batch_size: int
    ) -> Generator[dict[str, jax.Array], None, None]:
        """One pass over a split in global batches, each with a `mask`.

        Every batch has `batch_size` rows, sharded over the mesh; rows of the last one
        that stand for no example have mask 0.

        Args:
          split: a name in `data.eval`. `train`, unless it is one, stands for the
            training examples, in order and with the evaluation's transforms.
          batch_size: a multiple of the ways in which the mesh splits a batch.

        Raises:
          UserError: no such split, or a size that the mesh cannot split evenly.
        """
        rows = local_rows(self.mesh, batch_size)
        with closing(self._data.eval_batches(split, batch_size, rows)) as batches:
            for batch in batches:
                yield to_global(batch, self.mesh, batch_size)

    def host_batches(
        self, split: str, batch_size: int
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """The same pass as NumPy arrays: examples only, all of them on every process.

        Raises:
          UserError: no such split.
        """
        with closing(self._data.eval_batches(split, batch_size)) as batches:
            for batch in batches:
                real = batch["mask"] > 0
                yield {name: value[real] for name, value in batch.items()}

    @property
    def _data(self) -> Data:
        return replace(self.data, eval={"train": self.data.train, **self.data.eval})


@runtime_checkable
class Evaluator(Protocol):
    """A frozen record that turns a model into named numbers.

    It may ask of the task any method that it knows: a task without that method cannot
    be given this evaluator.
    """

    @property
    def every(self) -> int:
        """Optimizer steps between two calls; 0 is once, at the end."""
        ...

    def __call__(
        self, task: Any, variables: Variables, context: Context
    ) -> dict[str, float]:
        """The numbers, by name; all processes of the run call together."""
        ...
