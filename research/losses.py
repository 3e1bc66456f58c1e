"""Every loss: arrays in, one value per example out, so that callers can mask."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Reduction = Callable[[Float[Array, "batch ..."]], jax.Array]
"""Values of each example's dimensions to one value per example, `(batch,)`."""


def mean_over_dims(values: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
    """The mean over each example's dimensions."""
    return values.reshape(values.shape[0], -1).mean(axis=-1)


def half_sum_over_dims(values: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
    """Half the sum over each example's dimensions."""
    return 0.5 * values.reshape(values.shape[0], -1).sum(axis=-1)


def denoising_score_matching(
    score: Float[Array, "batch ..."],
    noise: Float[Array, "batch ..."],
    std: Float[Array, "batch"],
    diffusion: Float[Array, "batch"] | None = None,
    reduction: Reduction = mean_over_dims,
) -> Float[Array, "batch"]:
    """weight * |score + noise / std|^2 of each example.

    `score` is the model's at mean + std * noise, the perturbed example. The weight is
    std^2, which for VP makes this the squared error of the predicted noise, or, given
    `diffusion` g(t), g(t)^2: likelihood weighting (Song et al. 2021, arXiv:2011.13456,
    Eq. 7; arXiv:2101.09258, Eq. 8). The official settings take the mean over dimensions
    for VP and half the sum for VE.
    """
    per_example = (-1,) + (1,) * (score.ndim - 1)
    # Times std before squaring: noise / std alone reaches 1e3 and its square 1e6.
    errors = reduction(jnp.square(score * std.reshape(per_example) + noise))
    return errors if diffusion is None else jnp.square(diffusion / std) * errors
