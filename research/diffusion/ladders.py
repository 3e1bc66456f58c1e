"""Noise levels and step sizes for annealed Langevin dynamics.

The rules of Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative
Models", arXiv:2006.09011, for a geometric ladder from `sigma_max` to `sigma_min` with
`ratio` > 1 between neighbours and data of `num_dims` dimensions.
"""

import math
from statistics import NormalDist

from research.errors import UserError

_PHI = NormalDist().cdf


def ratio_of(sigma_min: float, sigma_max: float, num_levels: int) -> float:
    """The ratio between neighbours of a ladder of so many levels."""
    return (sigma_max / sigma_min) ** (1 / (num_levels - 1))


def overlap(num_dims: int, ratio: float) -> float:
    """The probability that noise of one level looks like that of the next.

    The norm of noise of level s is about N(sqrt(D) s, s^2 / 2): the mass of the noisier
    level's norm within three deviations of the other's (technique 2).
    """
    shift = math.sqrt(2 * num_dims) * (ratio - 1)
    return _PHI(shift + 3 * ratio) - _PHI(shift - 3 * ratio)


def num_levels(
    num_dims: int, sigma_min: float, sigma_max: float, wanted: float = 0.5
) -> int:
    """The fewest levels whose neighbours overlap by at least `wanted` (technique 2)."""
    levels = 2
    while overlap(num_dims, ratio_of(sigma_min, sigma_max, levels)) < wanted:
        levels += 1
    return levels


def variance_ratio(
    step_size: float, sigma_min: float, ratio: float, num_steps: int
) -> float:
    """Variance over wanted variance after a level's steps, for a single data point.

    Langevin dynamics on N(0, s^2), from the variance of the level before (arXiv:
    2006.09011, Proposition 3); 1 is perfect, whatever the level. The step at level
    s is `step_size` (s / sigma_min)^2, as `samplers.AnnealedLangevin` takes it.
    """
    relative = step_size / sigma_min**2
    kept = (1 - relative) ** 2
    stationary = 2 * relative / (1 - kept)
    return kept**num_steps * (ratio**2 - stationary) + stationary


def step_size(sigma_min: float, ratio: float, num_steps: int) -> float:
    """The step size whose `variance_ratio` is nearest to 1 (technique 4).

    Among 10,000 sizes below sigma_min^2, to which larger ones only converge slower.

    Raises:
      UserError: no steps, or levels that do not descend.
    """
    if num_steps < 1 or ratio <= 1:
        raise UserError(
            f"num_steps={num_steps} and ratio={ratio:g}: expected at least one step a "
            "level, and a ratio above 1"
        )
    sizes = (sigma_min**2 * i / 10_000 for i in range(1, 10_000))
    return min(
        sizes,
        key=lambda size: abs(variance_ratio(size, sigma_min, ratio, num_steps) - 1),
    )
