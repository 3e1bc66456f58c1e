import numpy as np
import pytest

from research.diffusion import ladders
from research.errors import UserError

# The five ladders of ermongroup/ncsnv2: dims, sigma_max, levels, steps, step size, the
# overlap of neighbours, the variance ratio, and the levels of an overlap of one half.
SHIPPED = [
    (32 * 32 * 3, 50.0, 232, 5, 6.2e-6, 0.5670, 1.056, 219),
    (64 * 64 * 3, 90.0, 500, 5, 3.3e-6, 0.5669, 1.031, 472),
    (96 * 96 * 3, 140.0, 788, 4, 4.9e-6, 0.5662, 1.025, 745),
    (128 * 128 * 3, 190.0, 1086, 3, 1.8e-6, 0.5665, 1.017, 1026),
    (256 * 256 * 3, 348.0, 2311, 3, 9e-7, 0.5669, 1.009, 2182),
]


@pytest.mark.parametrize("row", SHIPPED, ids=lambda row: str(row[0]))
def test_shipped_ladders(row):
    dims, sigma_max, levels, steps, size, overlap, variance, fewest = row
    ratio = ladders.ratio_of(0.01, sigma_max, levels)
    assert ladders.overlap(dims, ratio) == pytest.approx(overlap, abs=1e-4)
    assert ladders.variance_ratio(size, 0.01, ratio, steps) == pytest.approx(
        variance, abs=1e-3
    )
    found = ladders.num_levels(dims, 0.01, sigma_max)
    assert 0 <= found - fewest <= 1  # theirs is rounded to the nearest
    assert ladders.overlap(dims, ladders.ratio_of(0.01, sigma_max, found)) >= 0.5
    assert ladders.overlap(dims, ladders.ratio_of(0.01, sigma_max, found - 1)) < 0.5


def test_step_size_is_the_published_one():
    """But at 96 pixels, where 2.31e-6 is as good as the published 4.9e-6."""
    for row in SHIPPED[:2] + SHIPPED[3:]:
        _, sigma_max, levels, steps, size, *_ = row
        ratio = ladders.ratio_of(0.01, sigma_max, levels)
        assert ladders.step_size(0.01, ratio, steps) == pytest.approx(size, rel=0.02)


def test_variance_ratio_is_that_of_simulated_chains():
    """One point at 0: the score at level s is -x / s^2."""
    random = np.random.default_rng(0)
    sigma, ratio, size = 0.3, 1.4, 0.02 * 0.09
    x = ratio * sigma * random.standard_normal(1_000_000)
    for _ in range(5):
        x = x - size * x / sigma**2 + (2 * size) ** 0.5 * random.standard_normal(x.size)
    expected = ladders.variance_ratio(size, sigma, ratio, 5)
    assert x.var() / sigma**2 == pytest.approx(expected, rel=0.01)


def test_step_size_is_the_best():
    ratio = 1.3
    best = ladders.step_size(0.01, ratio, 5)
    gap = abs(ladders.variance_ratio(best, 0.01, ratio, 5) - 1)
    for factor in (0.8, 1.25):
        assert abs(ladders.variance_ratio(factor * best, 0.01, ratio, 5) - 1) > gap
    with pytest.raises(UserError, match="ratio above 1"):
        ladders.step_size(0.01, 1.0, 5)
