"""Classification of noisy images, and what it steers.

Two classes of images of one pixel, N(-1/2, 1/100) and N(1/2, 1/100), of which
everything is known at all times.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP
from research.diffusion.samplers import PredictorCorrector
from research.tasks.class_guidance import ClassGuidance
from research.tasks.noisy_classification import NoisyClassification
from research.tasks.score_matching import ScoreMatching

PROCESS = VP()
MEANS = jnp.array([-0.5, 0.5])


def log_joint(x, t):
    """log p(x(t), y) of both classes up to one constant, and the marginal variance."""
    a, std = PROCESS.marginal(jnp.ones_like(t), t)
    variance = 0.01 * a**2 + std**2
    gaps = x.reshape(-1, 1) - a[:, None] * MEANS[None]
    return -0.5 * gaps**2 / variance[:, None], gaps / variance[:, None], std


class ExactNoise(nn.Module):
    @nn.compact
    def __call__(self, x, t, train):
        self.param("unused", nn.initializers.ones, ())
        self.variable("counts", "unused", lambda: jnp.ones(()))
        logits, slopes, std = log_joint(x, t)
        noise = std * jnp.sum(nn.softmax(logits) * slopes, axis=-1)
        return noise.reshape(x.shape)


class ExactLogits(nn.Module):
    @nn.compact
    def __call__(self, x, t, train):
        calls = self.variable("counts", "calls", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            calls.value += 1
        return log_joint(x, t)[0] + self.param("shift", nn.initializers.zeros, (1, 2))


CLASSIFIER = NoisyClassification(
    network=ExactLogits(),
    process=PROCESS,
    pixels=Pixels(levels=256),
    image_shape=(1, 1, 1),
)
TASK = ClassGuidance(
    model=ScoreMatching(
        network=ExactNoise(),
        process=PROCESS,
        pixels=Pixels(levels=256),
        sampler=PredictorCorrector(num_steps=300, min_time=1e-3),
        image_shape=(1, 1, 1),
    ),
    classifier=CLASSIFIER,
    num_classes=2,
)


def make_batch(num=2000, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, num)
    x = np.asarray(MEANS)[label] + 0.1 * rng.standard_normal(num)
    image = np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)
    return {
        "image": jnp.asarray(image.reshape(num, 1, 1, 1)),
        "label": jnp.asarray(label),
    }


BATCH = make_batch()
RNG = jax.random.key(0)


def test_loss_is_the_mean_cross_entropy_over_all_noise_levels():
    """The exact posterior's, whose mean over times is an integral."""
    variables = CLASSIFIER.init(RNG, BATCH)
    loss, (metrics, _) = CLASSIFIER.loss(variables, make_batch(100_000), RNG, False)
    rng = np.random.default_rng(1)
    t = jnp.asarray(rng.uniform(size=100_000), jnp.float32)
    a, std = PROCESS.marginal(jnp.ones_like(t), t)
    data = 0.5 + 0.1 * rng.standard_normal(100_000)
    logits, _, _ = log_joint(a * data + std * rng.standard_normal(100_000), t)
    expected = -nn.log_softmax(logits)[:, 1]
    error = 2 * float(np.std(expected)) / 100_000**0.5
    assert loss == pytest.approx(float(expected.mean()), abs=3 * error)
    right = float(np.mean(logits[:, 1] > logits[:, 0]))
    assert metrics["accuracy"][0] / 100_000 == pytest.approx(right, abs=0.005)


def test_padding_counts_in_neither():
    variables = CLASSIFIER.init(RNG, BATCH)
    mask = np.float32(np.arange(2000) < 500)
    _, (whole, _) = CLASSIFIER.loss(variables, BATCH, RNG, False)
    _, (half, _) = CLASSIFIER.loss(variables, BATCH | {"mask": mask}, RNG, False)
    assert half["loss"][1] == half["accuracy"][1] == 500
    assert 0 < half["loss"][0] < whole["loss"][0]


def test_the_exact_posterior_is_the_optimum():
    variables = CLASSIFIER.init(RNG, BATCH)

    def loss(shift, seed):
        moved = variables | {"params": {"shift": jnp.array([[shift, 0.0]])}}
        return CLASSIFIER.loss(moved, BATCH, jax.random.key(seed), False)[0]

    mean = jax.jit(lambda s: jax.vmap(loss, (None, 0))(s, jnp.arange(20)).mean())
    assert mean(0.0) < mean(-0.5) and mean(0.0) < mean(0.5)


def test_log_likelihood_is_the_posterior():
    variables = CLASSIFIER.init(RNG, BATCH)
    x = jnp.linspace(-1, 1, 8).reshape(8, 1, 1, 1)
    t = jnp.linspace(0.1, 1, 8)
    label = jnp.arange(8) % 2
    found = CLASSIFIER.log_likelihood(variables, label, x, t)
    posterior = nn.softmax(log_joint(x, t)[0])
    np.testing.assert_allclose(jnp.exp(found), posterior[jnp.arange(8), label], 1e-5)


def test_samples_are_of_their_class():
    """p(x) p(y | x) is one class alone: N(+-1/2, 1/100)."""
    variables = TASK.init(RNG, BATCH)
    drawn = jax.jit(lambda v, k: TASK.sample(v, k, 2000))(variables, RNG)
    np.testing.assert_array_equal(drawn["label"], np.arange(2000) % 2)
    x = TASK.pixels.to_data(drawn["image"]).reshape(1000, 2)
    np.testing.assert_allclose(x.mean(axis=0), MEANS, atol=0.015)
    np.testing.assert_allclose(x.std(axis=0), 0.1, rtol=0.08)
    assert drawn["finite"] and drawn["nfe"] == 300


def test_without_weight_the_class_does_not_matter():
    variables = TASK.init(RNG, BATCH)
    free = replace(TASK, weight=0.0)
    drawn = jax.jit(lambda v, k: free.sample(v, k, 2000))(variables, RNG)
    x = free.pixels.to_data(drawn["image"]).reshape(1000, 2)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.05)


def test_only_the_classifier_learns():
    variables = TASK.init(RNG, BATCH)
    assert variables["params"].keys() == {"model", "classifier"}
    grad = jax.grad(
        lambda p: TASK.loss(variables | {"params": p}, BATCH, RNG, True)[0]
    )(variables["params"])
    assert optax.tree.norm(grad["model"]) == 0
    assert optax.tree.norm(grad["classifier"]) > 0
    _, (_, changed) = TASK.loss(variables, BATCH, RNG, True)
    counts = {"model": {"unused": 1}, "classifier": {"calls": 1}}
    assert changed == {"counts": counts}
