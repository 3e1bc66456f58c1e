from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from research.data.loader import Data
from research.data.sources import Digits
from research.diffusion.pixels import Pixels
from research.evals.frechet_classifier import (
    FrechetClassifier,
    Perceptron,
    gaussian_images,
)
from research.evals.moments import Moments
from tests.evals.fakes import make_context

EVALUATE = FrechetClassifier(
    num_samples=300, batch_size=300, hidden=(64, 16), num_epochs=30
)


@dataclass(frozen=True)
class Copies:
    """Its samples are the first held-out digits, or noise; asked for their labels."""

    noise: bool = False
    pixels: Pixels = Pixels(levels=17)

    def sample(self, variables, rng, num):
        source = Digits("test")
        images = np.stack([source[i]["image"] for i in range(num)])
        if self.noise:
            images = np.random.default_rng(0).integers(0, 17, images.shape, np.uint8)
        labels = np.array([source[i]["label"] for i in range(num)])
        return {
            "image": jnp.asarray(images),
            "label": jnp.asarray(labels),
            "nfe": jnp.array(5),
        }


@pytest.fixture(scope="module")
def context():
    data = Data(train=Digits("train"), eval={"test": Digits("test")}, batch_size=8)
    return make_context(data=data)


def test_real_digits(context):
    figures = EVALUATE(Copies(), {"params": {}}, context)
    assert figures["frechet"] == pytest.approx(figures["frechet_held_out"], rel=1e-6)
    assert figures["frechet"] < 0.2 * figures["frechet_gaussian"]
    assert figures["accuracy"] > 0.93
    assert figures["agreement"] > 0.93
    assert figures["label_entropy"] > 0.98
    assert figures["confidence"] == pytest.approx(
        figures["confidence_held_out"], abs=0.02
    )
    assert figures["nfe"] == 5


def test_noise(context):
    figures = EVALUATE(Copies(noise=True), {"params": {}}, context)
    assert figures["frechet"] > figures["frechet_gaussian"]
    assert figures["agreement"] < 0.25


def test_features_are_the_last_hidden_layer():
    """The classifier's own decision is a linear function of them."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((100, 6)), rng.integers(0, 3, 100)
    perceptron = Perceptron.fit(images, labels, (8, 4), num_epochs=2)
    features = perceptron.features(images)
    assert features.shape == (100, 4)
    logits = features @ perceptron.model.coefs_[-1] + perceptron.model.intercepts_[-1]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        perceptron.probabilities(images), odds / odds.sum(1, keepdims=True), rtol=1e-6
    )


def test_gaussian_images_have_the_moments():
    covariance = np.array([[0.01, 0.008], [0.008, 0.01]])
    moments = Moments(np.array([0.4, 0.6]), covariance)
    images = gaussian_images(moments, 50_000, 255, seed=0)
    np.testing.assert_allclose(images.mean(0), moments.mean, atol=0.002)
    np.testing.assert_allclose(np.cov(images.T), covariance, rtol=0.03)
    wide = gaussian_images(Moments(moments.mean, 10 * covariance), 1000, 16, seed=0)
    assert wide.min() == 0 and wide.max() == 1
    np.testing.assert_allclose(wide * 16, np.round(wide * 16), atol=1e-6)
