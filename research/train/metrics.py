"""Metrics as `(total, count)` pairs: exact over ragged batches and microbatches."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Metrics = Mapping[str, tuple[ArrayLike, ArrayLike]]


def mean(metrics: Metrics) -> dict[str, float]:
    """`total / count` of each metric as a Python float; fetches the arrays.

    A metric that counted nothing is NaN.
    """
    totals = jax.device_get(dict(metrics))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            name: float(np.float64(total) / np.float64(count))
            for name, (total, count) in totals.items()
        }


def add(left: Metrics, right: Metrics) -> dict[str, tuple[ArrayLike, ArrayLike]]:
    """Pool two sets of the same metrics."""
    return jax.tree.map(jnp.add, dict(left), dict(right))


def pool(parts: Iterable[Metrics]) -> dict[str, float]:
    """The means over all parts; each part is fetched as it comes.

    Raises:
      ValueError: there is no part.
    """
    sums: dict[str, np.ndarray] = {}
    for part in parts:
        for name, pair in jax.device_get(dict(part)).items():
            pair = np.asarray(pair, np.float64)
            sums[name] = sums[name] + pair if name in sums else pair
    if not sums:
        raise ValueError("no batch was given: there is nothing to average")
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: float(total / count) for name, (total, count) in sums.items()}
