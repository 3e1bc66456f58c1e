"""What the best linear denoiser reaches: the loss that a network has to beat."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from research.diffusion.pixels import Pixels
from research.diffusion.processes import Process
from research.evals.base import Context
from research.evals.moments import feature_moments
from research.tasks.base import Variables


def gaussian_optimum(
    eigenvalues: Float[np.ndarray, " dim"],
    process: Process,
    min_time: float = 1e-5,
    num_times: int = 10_000,
) -> float:
    """The least mean squared error of the noise predicted from x(t), linearly.

    Where x(t) = a x(0) + s noise and the covariance of x(0) has eigenvalues c, it is

        mean over t and c of  a^2 c / (a^2 c + s^2),    t uniform on [min_time, 1],

    the error of the posterior mean for Gaussian data. For other data it is what a
    denoiser attains that knows no more than their mean and covariance.

    Args:
      eigenvalues: of the data's covariance, in the data range of the process.
      process: gives a and s at each time.
      min_time: the smallest time.
      num_times: points of the midpoint rule.
    """
    times = min_time + (1 - min_time) * (np.arange(num_times) + 0.5) / num_times
    scales, stds = process.marginal(jnp.ones((num_times, 1)), jnp.asarray(times))
    signals = np.square(np.asarray(scales, np.float64))  # (time, 1)
    noises = np.square(np.asarray(stds, np.float64))
    errors = [
        np.mean(signal * eigenvalues / (signal * eigenvalues + noise))
        for signal, noise in zip(signals, noises, strict=True)
    ]
    return float(np.mean(errors))


@runtime_checkable
class DenoisingTask(Protocol):
    """A task that denoises images at random times."""

    @property
    def process(self) -> Process: ...

    @property
    def pixels(self) -> Pixels: ...

    @property
    def min_time(self) -> float: ...


@dataclass(frozen=True)
class GaussianBaseline:
    """Reports `gaussian_optimum` for the covariance of a split in the task's range.

    Comparable with the loss of a task that averages the unweighted error over
    dimensions.
    """

    split: str = "train"
    batch_size: int = 512
    every: int = 0

    def __call__(
        self, task: DenoisingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        def vectors() -> Iterator[np.ndarray]:
            rng = jax.random.key(context.seed)
            batches = context.host_batches(self.split, self.batch_size)
            for index, batch in enumerate(batches):
                key = jax.random.fold_in(rng, index)
                x = task.pixels.to_data(jnp.asarray(batch["image"]), key)
                yield np.asarray(x).reshape(len(x), -1)

        # Rounding may leave eigenvalues of a singular covariance just below zero.
        eigenvalues = np.linalg.eigvalsh(feature_moments(vectors()).covariance).clip(0)
        optimum = gaussian_optimum(eigenvalues, task.process, task.min_time)
        return {"gaussian_optimum": optimum}
