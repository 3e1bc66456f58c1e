"""How good samples of small labelled images are, judged by the training images.

For images that are too small for an Inception network. None of these figures is a FID.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from research.evals.base import Context
from research.evals.frechet import frechet_distance
from research.evals.moments import feature_moments
from research.evals.samples import SamplingTask, draw_samples, scalars
from research.tasks.base import Variables


@dataclass(frozen=True)
class DigitQuality:
    """Compares samples with a labelled split's images, levels scaled to [0, 1].

    Reports, with what the same figures are for the 360 held-out digits of
    scikit-learn's 8x8 set against the other 1437:

      fd_pixel: Fréchet distance of the pixels' moments (0.092; uniform noise 9.9).
      confidence: mean largest class probability of a logistic regression (0.912).
      label_entropy: entropy of its decisions over that of uniform ones (0.996).
      nearest_distance: mean Euclidean distance to the nearest training image (1.04);
        0 for copies.

    and the means of the sampler's own scalars, such as `nfe`.
    """

    num_samples: int = 1000
    batch_size: int = 250
    reference_split: str = "train"
    every: int = 0

    def __call__(
        self, task: SamplingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        batches = list(context.host_batches(self.reference_split, 512))
        images = np.concatenate([batch["image"] for batch in batches])
        labels = np.concatenate([batch["label"] for batch in batches])
        drawn = draw_samples(
            task,
            variables,
            jax.random.key(context.seed),
            self.num_samples,
            self.batch_size,
            context.mesh,
        )
        top = task.pixels.levels - 1
        figures = compare(_flat(drawn["image"]) / top, _flat(images) / top, labels)
        return figures | scalars(drawn)


def compare(
    samples: Float[np.ndarray, "num dim"],
    images: Float[np.ndarray, "count dim"],
    labels: Int[np.ndarray, " count"],
) -> dict[str, float]:
    """The figures of `DigitQuality` for samples and labelled images in [0, 1]."""
    probabilities = fit_classifier(images, labels)(samples)
    frequencies = np.bincount(probabilities.argmax(1)) / len(samples)
    frequencies = frequencies[frequencies > 0]
    entropy = -(frequencies * np.log(frequencies)).sum()
    return {
        "fd_pixel": frechet_distance(
            feature_moments([samples]), feature_moments([images])
        ),
        "confidence": float(probabilities.max(1).mean()),
        "label_entropy": float(entropy / math.log(probabilities.shape[1])),
        "nearest_distance": float(_nearest(samples, images).mean()),
    }


def fit_classifier(
    images: Float[np.ndarray, "count dim"], labels: Int[np.ndarray, " count"]
) -> Callable[[Float[np.ndarray, "num dim"]], Float[np.ndarray, "num classes"]]:
    """Class probabilities by a logistic regression with unit L2 penalty.

    The fit is convex and draws nothing: the same images give the same classifier.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(images, labels).predict_proba


def _nearest(samples: np.ndarray, images: np.ndarray) -> Float[np.ndarray, " num"]:
    squares = (samples**2).sum(1)[:, None] + (images**2).sum(1)[None]
    # Cancellation may leave the square of a zero distance just below zero.
    return np.sqrt((squares - 2 * samples @ images.T).clip(0).min(1))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
