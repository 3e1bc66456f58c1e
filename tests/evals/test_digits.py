from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from research.data.loader import Data
from research.data.sources import Digits
from research.diffusion.pixels import Pixels
from research.evals.digits import DigitQuality, compare, fit_classifier
from tests.evals.fakes import make_context


def read(split):
    source = Digits(split)
    examples = [source[i] for i in range(len(source))]
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    return images, images.reshape(-1, 64) / 16, labels


@pytest.fixture(scope="module")
def train():
    return read("train")[1:]


@pytest.fixture(scope="module")
def test():
    return read("test")


def test_classifier(train, test):
    _, images, labels = test
    decisions = fit_classifier(*train)(images).argmax(1)
    assert (decisions == labels).mean() == pytest.approx(0.981, abs=5e-4)


def test_real_digits(train, test):
    figures = compare(test[1], *train)
    assert figures["fd_pixel"] == pytest.approx(0.092, abs=5e-4)
    assert figures["confidence"] == pytest.approx(0.912, abs=5e-4)
    assert figures["label_entropy"] == pytest.approx(0.996, abs=5e-4)
    assert figures["nearest_distance"] == pytest.approx(1.042, abs=5e-4)


def test_noise_and_copies(train):
    noise = np.random.default_rng(0).uniform(size=(1000, 64))
    figures = compare(noise, *train)
    assert figures["fd_pixel"] == pytest.approx(9.9, abs=0.1)
    assert figures["confidence"] < 0.8
    ones = train[0][train[1] == 1]
    figures = compare(ones, *train)
    assert figures["label_entropy"] < 0.05
    assert figures["nearest_distance"] < 1e-6


@dataclass(frozen=True)
class TestDigits:
    """Its samples are the first real test images."""

    __test__ = False
    pixels: Pixels = Pixels(levels=17, dequantize=True)

    def sample(self, variables, rng, num):
        return {"image": variables["images"][:num], "nfe": jnp.array(9)}


def test_evaluator(train, test):
    images, flat, _ = test
    data = Data(train=Digits(), eval={}, batch_size=8)
    evaluator = DigitQuality(num_samples=100, batch_size=100)
    variables = {"images": jnp.asarray(images)}
    values = evaluator(TestDigits(), variables, make_context(data=data))
    assert values == pytest.approx({**compare(flat[:100], *train), "nfe": 9}, rel=1e-6)
