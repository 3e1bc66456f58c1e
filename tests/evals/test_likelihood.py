import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP
from research.diffusion.samplers import PredictorCorrector
from research.evals.likelihood import BitsPerDim
from research.tasks.score_matching import ScoreMatching
from tests.evals.fakes import VARIABLES, KnownTask, make_context, make_images


@pytest.mark.parametrize("num_examples", [0, 5, 9])
def test_means_over_the_first_examples(num_examples):
    evaluator = BitsPerDim(num_examples=num_examples, batch_size=8, num_probes=4)
    values = evaluator(KnownTask(), VARIABLES, make_context())
    bits = make_images(11).mean((1, 2, 3))[: num_examples or None] + 0.5
    error = bits.std(ddof=1) / math.sqrt(len(bits))
    expected = {"bits_per_dim": bits.mean(), "standard_error": error, "nfe": 40}
    assert values == pytest.approx(expected, rel=1e-6)


def test_rounds_average_the_noise_of_each_image():
    def run(rounds):
        evaluator = BitsPerDim(batch_size=8, num_rounds=rounds)
        return evaluator(KnownTask(noise=1.0), VARIABLES, make_context())

    exact = make_images(11).mean() + 0.5
    assert run(2) == run(2)
    assert run(1)["bits_per_dim"] != run(2)["bits_per_dim"]
    assert abs(run(30)["bits_per_dim"] - exact) < 3 / np.sqrt(330)


class WhiteNoise(nn.Module):
    """Predicts the noise exactly for data N(0, I), whose score is -x at all times."""

    @nn.compact
    def __call__(self, x, t, train):
        return VP().marginal(x, t)[1][:, None, None, None] * x


def test_score_model_of_known_density():
    """17 levels on [-3, 3] under N(0, I), dequantized: E[u^2] of each level's bin."""
    task = ScoreMatching(
        network=WhiteNoise(),
        process=VP(),
        pixels=Pixels(levels=17, low=-3.0, high=3.0),
        sampler=PredictorCorrector(num_steps=2),
        image_shape=(4, 4, 1),
    )
    evaluator = BitsPerDim(batch_size=8, num_rounds=20)
    values = evaluator(task, {"params": {}}, make_context())
    width = 6 / 17
    centres = -3 + width * (make_images(11) + 0.5)
    square = (centres**2).mean() + width**2 / 12
    nats = square / 2 + math.log(2 * math.pi) / 2 - math.log(width)
    # The noise left is that of dequantization: |x| width per dimension at most.
    tolerance = 3 * 3 * width / math.sqrt(12) / math.sqrt(20 * 11 * 16) / math.log(2)
    assert abs(values["bits_per_dim"] - nats / math.log(2)) < tolerance
    assert values["nfe"] > 0 and jnp.isfinite(values["standard_error"])
