"""Negative log-likelihood in bits per dimension."""

import math
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from research.evals.base import Context
from research.tasks.base import Variables
from research.train.sharding import replicated


@runtime_checkable
class LikelihoodTask(Protocol):
    """A task that knows the likelihood of its model."""

    def log_likelihood(
        self,
        variables: Variables,
        images: UInt8[Array, "batch height width channels"],
        rng: Key[Array, ""],
        num_probes: int = 1,
    ) -> tuple[Float[Array, " batch"], Int[Array, ""]]:
        """Bits per dimension of each image, and the network evaluations it took.

        The images are dequantised inside; that noise and the `num_probes` probes of
        each divergence come from `rng`.
        """
        ...


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of the first `num_examples` images of a split (0: of all).

    Each of the `num_rounds` passes draws its own dequantisation noise and `num_probes`
    probes; Song et al. (2021, arXiv:2011.13456) report the mean of 5 passes over the
    CIFAR-10 test set with one probe.

    Reports `bits_per_dim`; `standard_error`, of that mean over images, each first
    averaged over the passes; and `nfe`, network evaluations per batch.
    """

    split: str = "test"
    num_examples: int = 0
    batch_size: int = 128
    num_rounds: int = 1
    num_probes: int = 1
    every: int = 0

    def __call__(
        self, task: LikelihoodTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        rounds, evaluations = [], []
        for round in range(self.num_rounds):
            rng = jax.random.fold_in(jax.random.key(context.seed), round)
            values, count = [], 0
            with closing(context.batches(self.split, self.batch_size)) as batches:
                for index, batch in enumerate(batches):
                    key = jax.random.fold_in(rng, index)
                    outputs = _bits(
                        task, variables, batch, key, self.num_probes, context.mesh
                    )
                    bits, mask, nfe = jax.device_get(outputs)
                    values.append(bits[mask > 0].astype(np.float64))
                    evaluations.append(float(nfe))
                    count += len(values[-1])
                    if 0 < self.num_examples <= count:
                        break
            rounds.append(np.concatenate(values)[: self.num_examples or None])
        per_image = np.mean(rounds, axis=0)
        return {
            "bits_per_dim": float(per_image.mean()),
            "standard_error": float(_standard_error(per_image)),
            "nfe": float(np.mean(evaluations)),
        }


@partial(jax.jit, static_argnums=(0, 4, 5))
def _bits(
    task: LikelihoodTask,
    variables: Variables,
    batch: dict[str, jax.Array],
    rng: jax.Array,
    num_probes: int,
    mesh: Mesh,
) -> Any:
    bits, nfe = task.log_likelihood(variables, batch["image"], rng, num_probes)
    # Every process reads the values of all rows.
    outputs = (bits, batch["mask"], nfe)
    return jax.lax.with_sharding_constraint(outputs, replicated(mesh))


def _standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
