"""A Fréchet distance for small labelled images, in features of their own.

For images that an Inception network was not made for. None of these figures is a FID:
they compare models of one data set under one classifier.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from research.evals.base import Context
from research.evals.frechet import frechet_distance
from research.evals.moments import Moments, feature_moments
from research.evals.samples import SamplingTask, draw_samples, scalars
from research.tasks.base import Variables


@dataclass(frozen=True)
class FrechetClassifier:
    """Compares samples with real images in the last hidden layer of a perceptron.

    The perceptron is fitted to the labels of the reference split by Adam, from a fixed
    seed. Reports, each distance from `num_samples` images to the whole reference:

      frechet: of the samples.
      frechet_held_out: control: the first images of the held-out split, what a perfect
        model would have.
      frechet_gaussian: control: draws from a Gaussian with the mean and the covariance
        of the reference's pixels, rounded to levels.
      confidence: mean largest class probability of the samples; `confidence_held_out`.
      label_entropy: entropy of the decisions on the samples over that of uniform ones.
      accuracy: of the perceptron on the whole held-out split.
      agreement: how often it sees the class that a sample was drawn for, where the task
        returns `label`.

    and the means of the sampler's own scalars, such as `nfe`.

    Attributes:
      hidden: widths of the perceptron's layers; the last is that of the features.
      num_epochs: of its fit.
    """

    num_samples: int = 512
    batch_size: int = 128
    reference_split: str = "train"
    held_out_split: str = "test"
    hidden: tuple[int, ...] = (256, 64)
    num_epochs: int = 10
    every: int = 0

    def __call__(
        self, task: SamplingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        top = task.pixels.levels - 1
        images, labels = _read(context, self.reference_split, top)
        others, other_labels = _read(context, self.held_out_split, top)
        perceptron = Perceptron.fit(images, labels, self.hidden, self.num_epochs)
        rng = jax.random.key(context.seed)
        drawn = draw_samples(
            task, variables, rng, self.num_samples, self.batch_size, context.mesh
        )
        samples = _flat(drawn["image"], top)
        reference = feature_moments([perceptron.features(images)])

        def distance(those: np.ndarray) -> float:
            return frechet_distance(
                feature_moments([perceptron.features(those)]), reference
            )

        probabilities = perceptron.probabilities(samples)
        held_out = perceptron.probabilities(others)
        decisions = probabilities.argmax(1)
        figures = {
            "frechet": distance(samples),
            "frechet_held_out": distance(others[: self.num_samples]),
            "frechet_gaussian": distance(
                gaussian_images(
                    feature_moments([images]), self.num_samples, top, context.seed
                )
            ),
            "confidence": float(probabilities.max(1).mean()),
            "confidence_held_out": float(held_out.max(1).mean()),
            "label_entropy": _relative_entropy(decisions, probabilities.shape[1]),
            "accuracy": float((held_out.argmax(1) == other_labels).mean()),
        }
        if "label" in drawn:
            figures["agreement"] = float((decisions == drawn["label"]).mean())
        return figures | scalars(drawn)


@dataclass(frozen=True)
class Perceptron:
    """A fitted `sklearn.neural_network.MLPClassifier` with ReLU layers."""

    model: Any

    @classmethod
    def fit(
        cls,
        images: Float[np.ndarray, "count dim"],
        labels: Int[np.ndarray, " count"],
        hidden: tuple[int, ...],
        num_epochs: int,
    ) -> "Perceptron":
        """Fits to labels 0, 1, ... in minibatches of 200, from seed 0."""
        from sklearn.neural_network import MLPClassifier

        model = MLPClassifier(hidden, random_state=0)
        for _ in range(num_epochs):
            model.partial_fit(images, labels, classes=np.arange(labels.max() + 1))
        return cls(model)

    def features(
        self, images: Float[np.ndarray, "num dim"]
    ) -> Float[np.ndarray, "num features"]:
        """The last hidden layer."""
        layers = zip(self.model.coefs_[:-1], self.model.intercepts_[:-1], strict=True)
        for kernel, bias in layers:
            images = np.maximum(images @ kernel + bias, 0)
        return images

    def probabilities(
        self, images: Float[np.ndarray, "num dim"]
    ) -> Float[np.ndarray, "num classes"]:
        """Of the classes."""
        return self.model.predict_proba(images)


def gaussian_images(
    pixels: Moments, num: int, top: int, seed: int
) -> Float[np.ndarray, "num dim"]:
    """Draws of those moments as images: in [0, 1], rounded to `top` + 1 levels."""
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(pixels.covariance)
    noise = rng.standard_normal((num, len(values))) * np.sqrt(values.clip(0))
    return np.round((pixels.mean + noise @ vectors.T).clip(0, 1) * top) / top


def _relative_entropy(decisions: np.ndarray, num_classes: int) -> float:
    frequencies = np.bincount(decisions) / len(decisions)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * np.log(frequencies)).sum() / math.log(num_classes))


def _read(context: Context, split: str, top: int) -> tuple[np.ndarray, np.ndarray]:
    batches = list(context.host_batches(split, 512))
    images = np.concatenate([batch["image"] for batch in batches])
    return _flat(images, top), np.concatenate([batch["label"] for batch in batches])


def _flat(images: UInt8[np.ndarray, "num ..."], top: int) -> np.ndarray:
    return (images.reshape(len(images), -1) / top).astype(np.float32)
