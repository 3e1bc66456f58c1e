"""Fréchet distance between feature statistics, FID, and the Inception Score.

Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule", and Salimans et
al. (2016), "Improved Techniques for Training GANs". All statistics are float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.special import softmax

from research.evals.base import Context
from research.evals.moments import Moments, feature_moments, load_moments
from research.evals.samples import SamplingTask, full_range, sample_batches, scalars
from research.tasks.base import Variables
from research.train.sharding import batch_sharding, replicated


def frechet_distance(first: Moments, second: Moments) -> float:
    """`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`, the squared Wasserstein-2 distance
    between two Gaussians (Dowson & Landau 1982).

    `tr (C1 C2)^(1/2)` is the sum of the singular values of `C1^(1/2) C2^(1/2)`, which
    is real and accurate for singular covariances as well.
    """
    root = _square_root(first.covariance) @ _square_root(second.covariance)
    overlap = np.linalg.svd(root, compute_uv=False).sum()
    gap = first.mean - second.mean
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return float(gap @ gap + spread - 2 * overlap)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def inception_score(
    probabilities: Float[np.ndarray, "num classes"], splits: int = 10
) -> tuple[float, float]:
    """`exp(E KL(p(y|x) || p(y)))` over consecutive splits: their mean and deviation.

    Raises:
      ValueError: fewer rows than splits.
    """
    if len(probabilities) < splits:
        raise ValueError(f"{len(probabilities)} rows cannot make {splits} splits")
    scores = []
    for part in np.array_split(probabilities.astype(np.float64), splits):
        marginal = part.mean(0)
        # 0 log 0 = 0
        ratio = np.log(part, where=part > 0, out=np.zeros_like(part))
        ratio -= np.log(marginal, where=marginal > 0, out=np.zeros_like(marginal))
        scores.append(np.exp((part * ratio).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@dataclass(frozen=True)
class FrechetInception:
    """FID and Inception Score of samples, in the Inception-v3 network of both papers.

    Attributes:
      network: loads the network: `partial(pretrained.inception.load, path=...)`. From
        uint8 images it makes `features` and `unbiased_logits`.
      reference_split: whose images the samples are compared with; published numbers
        use the training set.
      statistics: `.npz` with the moments of the reference, instead of a split.
      num_samples: 50,000 in all published numbers. Fewer bias the FID upwards.
      num_splits: of the samples, for the Inception Score.

    Reports `fid`, `inception_score`, `inception_score_std` and the draw's scalars.
    """

    network: Callable[[], tuple[nn.Module, Variables]]
    reference_split: str = "train"
    statistics: str = ""
    num_samples: int = 50_000
    batch_size: int = 256
    num_splits: int = 10
    every: int = 0

    def __call__(
        self, task: SamplingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        mesh = context.mesh
        model, weights = self.network()
        weights = jax.device_put(weights, replicated(mesh))
        probabilities: list[np.ndarray] = []
        reports: list[dict[str, float]] = []

        def features(images: np.ndarray) -> dict[str, np.ndarray]:
            images = full_range(images, task.pixels.levels)
            # One shape for all batches: the network is compiled once.
            surplus = self.batch_size - len(images)
            padded = np.pad(images, [(0, surplus), (0, 0), (0, 0), (0, 0)])
            outputs = jax.device_get(_features(model, weights, padded, mesh))
            return {name: output[: len(images)] for name, output in outputs.items()}

        def sampled() -> Iterator[np.ndarray]:
            rng = jax.random.key(context.seed)
            for drawn in sample_batches(
                task, variables, rng, self.num_samples, self.batch_size, mesh
            ):
                reports.append(scalars(drawn))
                outputs = features(drawn["image"])
                probabilities.append(softmax(outputs["unbiased_logits"], axis=-1))
                yield outputs["features"]

        if self.statistics:
            reference = load_moments(Path(self.statistics))
        else:
            reference = feature_moments(
                features(batch["image"])["features"]
                for batch in context.host_batches(self.reference_split, self.batch_size)
            )
        distance = frechet_distance(feature_moments(sampled()), reference)
        score, deviation = inception_score(
            np.concatenate(probabilities), self.num_splits
        )
        return {
            "fid": distance,
            "inception_score": score,
            "inception_score_std": deviation,
            **{name: float(np.mean([r[name] for r in reports])) for name in reports[0]},
        }


@partial(jax.jit, static_argnums=(0, 3))
def _features(
    model: nn.Module, weights: Variables, images: ArrayLike, mesh: Mesh
) -> Any:
    images = jax.lax.with_sharding_constraint(images, batch_sharding(mesh))
    outputs = model.apply(weights, images)
    return jax.lax.with_sharding_constraint(outputs, replicated(mesh))
