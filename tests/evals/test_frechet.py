from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from research.evals.frechet import FrechetInception, frechet_distance, inception_score
from research.evals.moments import Moments, feature_moments, save_moments
from research.evals.samples import draw_samples, full_range
from tests.evals.fakes import VARIABLES, KnownTask, make_context, make_images


def random_covariance(rng, dim):
    root = rng.normal(size=(dim, dim))
    return root @ root.T


def test_commuting_covariances():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    first = Moments(np.array([1.0, 0, 0]), rotation * a @ rotation.T)
    second = Moments(np.array([0, 2.0, 0]), rotation * b @ rotation.T)
    expected = 1 + 4 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_any_covariances():
    rng = np.random.default_rng(0)
    first = Moments(rng.normal(size=6), random_covariance(rng, 6))
    second = Moments(rng.normal(size=6), random_covariance(rng, 6))
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    expected = ((first.mean - second.mean) ** 2).sum() + np.trace(
        first.covariance + second.covariance - 2 * root.real
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances():
    """Fewer vectors than dimensions; the same ones have distance zero."""
    x = np.random.default_rng(0).normal(size=(20, 100))
    moments = feature_moments([x])
    scale = np.trace(moments.covariance)
    assert abs(frechet_distance(moments, moments)) < 1e-12 * scale
    shifted = feature_moments([x + 0.1])
    assert frechet_distance(moments, shifted) == pytest.approx(1.0, rel=1e-10)


def test_inception_score_of_known_probabilities():
    uniform = np.full((20, 10), 0.1)
    assert inception_score(uniform, 2) == pytest.approx((1, 0))
    sure = np.tile(np.eye(5), (4, 1))
    assert inception_score(sure, 4) == pytest.approx((5, 0))
    # Splits that show 1 and 2 of the classes: mean and deviation of 1 and 2.
    halves = np.eye(2)[[0, 0, 0, 0, 0, 1, 0, 1]]
    assert inception_score(halves, 2) == pytest.approx((1.5, 0.5))
    # One split: exp of the mutual information of class and image.
    p = np.array([[0.9, 0.1], [0.4, 0.6]])
    information = (p * np.log(p / p.mean(0))).sum() / 2
    assert inception_score(p, 1)[0] == pytest.approx(np.exp(information))
    with pytest.raises(ValueError, match="splits"):
        inception_score(uniform, 21)


class RowMeans(nn.Module):
    """Row means as features: a small covariance that full range and order both move."""

    @nn.compact
    def __call__(self, images):
        weight = self.param("weight", nn.initializers.ones, ())
        features = weight * images.astype(jnp.float32).mean((2, 3))
        return {"features": features, "unbiased_logits": features / 50}


def test_frechet_inception(tmp_path):
    def network():
        return RowMeans(), {"params": {"weight": np.float32(2)}}

    def features(images):
        return 2 * full_range(images, 17).astype(np.float64).mean((2, 3))

    context = make_context(num_train=37)
    evaluator = FrechetInception(network, num_samples=21, batch_size=8, num_splits=3)
    values = evaluator(KnownTask(), VARIABLES, context)

    rng = jax.random.key(context.seed)
    drawn = draw_samples(KnownTask(), VARIABLES, rng, 21, 8, context.mesh)["image"]
    reference = feature_moments([features(make_images(37, seed=1))])
    distance = frechet_distance(feature_moments([features(drawn)]), reference)
    logits = features(drawn) / 50
    score, deviation = inception_score(
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 3
    )
    expected = {
        "fid": distance,
        "inception_score": score,
        "inception_score_std": deviation,
        "nfe": 3,
        "finite": 1,
    }
    assert values == pytest.approx(expected, rel=1e-5)

    save_moments(tmp_path / "train.npz", reference)
    evaluator = replace(
        evaluator, statistics=str(tmp_path / "train.npz"), reference_split="none"
    )
    assert evaluator(KnownTask(), VARIABLES, context) == pytest.approx(values, rel=1e-5)
