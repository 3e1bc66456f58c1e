"""The one contract: all that the training loop may ask of a task."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

Batch = Mapping[str, Any]
"""Arrays with a leading batch dimension, by name."""

Variables = Mapping[str, Any]
"""Flax collections by name: `params`, and others such as `batch_stats`."""

Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""`(total, count)` by name; what is reported is `total / count`."""


@runtime_checkable
class Task(Protocol):
    """What is optimised: a model slot and a loss."""

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        """Fresh variables for batches shaped like `batch`."""
        ...

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The scalar to minimise, then the metrics and the changed collections.

        The metrics hold `loss` as a `(total, count)` pair, `count` being the number
        of terms that the scalar averages over. `batch["mask"]`, when present, is 1
        for examples and 0 for padding, which counts in neither.
        """
        ...
