import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from research.data.loader import Data
from research.data.sources import Digits
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP, Process
from research.evals.gaussian import GaussianBaseline, gaussian_optimum
from tests.evals.fakes import make_context


@dataclass(frozen=True)
class Straight(Process):
    """Signal variance 1 - t, noise variance t."""

    def marginal(self, x0, t):
        return jnp.sqrt(1 - t)[:, None] * x0, jnp.sqrt(t)


@dataclass(frozen=True)
class Task:
    pixels: Pixels
    process: VP = VP()
    min_time: float = 1e-5


@pytest.mark.parametrize("c", [0.01, 0.5, 4.0])
def test_closed_form_in_one_dimension(c):
    """c/k^2 (-ln c - k) with k = 1 - c, the integral of c(1-t) / (c(1-t) + t)."""
    k = 1 - c
    expected = c / k**2 * (-math.log(c) - k)
    found = gaussian_optimum(np.array([c]), Straight(), min_time=0.0)
    assert found == pytest.approx(expected, rel=1e-4)


def test_closed_form_of_white_data_under_vp():
    """For c = 1 the integrand is exp(-0.1 t - 19.9 t^2 / 2)."""
    a, b = 19.9 / 2, 0.1
    root = math.sqrt(a)
    edges = [math.erf(root * t + b / (2 * root)) for t in (1e-5, 1.0)]
    integral = math.exp(b**2 / (4 * a)) * math.sqrt(math.pi) / (2 * root)
    expected = integral * (edges[1] - edges[0]) / (1 - 1e-5)
    assert gaussian_optimum(np.ones(3), VP()) == pytest.approx(expected, rel=1e-5)


def test_exact_linear_denoiser_reaches_it():
    rng, num, dim = np.random.default_rng(0), 40_000, 3
    root = rng.normal(size=(dim, dim)) * np.array([2.0, 0.5, 0.1])
    covariance, mean = root @ root.T, rng.normal(size=dim)
    times = jnp.asarray(rng.uniform(1e-5, 1, num))
    x0 = mean + rng.normal(size=(num, dim)) @ root.T
    scale, std = (np.asarray(v) for v in VP().marginal(jnp.ones((num, 1)), times))
    noise = rng.normal(size=(num, dim))
    x = scale * x0 + std[:, None] * noise
    # E[noise | x] = std (a^2 C + std^2 I)^-1 (x - a m)
    total = scale[:, :, None] ** 2 * covariance + std[:, None, None] ** 2 * np.eye(dim)
    predicted = np.linalg.solve(total, (x - scale * mean)[..., None])[..., 0]
    errors = ((std[:, None] * predicted - noise) ** 2).mean(1)
    optimum = gaussian_optimum(np.linalg.eigvalsh(covariance), VP())
    standard_error = errors.std() / math.sqrt(num)
    assert abs(errors.mean() - optimum) < 3 * standard_error
    assert standard_error < 0.01 * optimum


def test_baseline_knows_the_range_and_the_dequantization():
    data = Data(train=Digits(), eval={}, batch_size=8)
    context = make_context(data=data)

    def baseline(**pixels):
        values = GaussianBaseline()(Task(Pixels(levels=17, **pixels)), {}, context)
        return values["gaussian_optimum"]

    levels = np.stack([example["image"] for example in data.train]).reshape(-1, 64)
    c = np.linalg.eigvalsh(np.cov(levels.T)).clip(0)
    exact = gaussian_optimum(c * (2 / 16) ** 2, VP())
    assert baseline() == pytest.approx(exact, rel=1e-5)
    exact = gaussian_optimum((c + 1 / 12) * (2 / 17) ** 2, VP())
    assert baseline(dequantize=True) == pytest.approx(exact, rel=2e-3)
    exact = gaussian_optimum(c / 16**2, VP())
    assert baseline(low=0.0) == pytest.approx(exact, rel=1e-5)
