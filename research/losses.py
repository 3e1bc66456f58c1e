"""Every loss: arrays in, one value per example out, so that callers can mask."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Field = Callable[[Float[Array, "batch ..."]], jax.Array]
"""A vector for each example, shaped like it and a function of it alone."""

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


def explicit_score_matching(
    score: Float[Array, "batch ..."], target: Float[Array, "batch ..."]
) -> Float[Array, "batch"]:
    """1/2 |score - target|^2 of each example; in expectation the Fisher divergence.

    With the gradient of a known log-density as target it is Hyvarinen's definition
    (2005); with -noise / std at a perturbed example it is denoising score matching with
    one noise level, and differs from the former by a constant (Vincent 2011).
    """
    return half_sum_over_dims(jnp.square(score - target))


def implicit_score_matching(
    score: Field, x: Float[Array, "batch ..."]
) -> Float[Array, "batch"]:
    """tr(d score / d x) + 1/2 |score|^2 (Hyvarinen 2005, Eq. 4), the trace exact.

    It takes as many directional derivatives as there are dimensions. Its expectation is
    the Fisher divergence less 1/2 E |grad log p|^2.
    """
    directions = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
    values, products = _directional(score, x, directions)
    trace = jnp.sum(_inner(directions, products), axis=0)
    return trace + half_sum_over_dims(jnp.square(values))


def sliced_score_matching(
    score: Field,
    x: Float[Array, "batch ..."],
    probes: Float[Array, "probes batch ..."],
    variance_reduced: bool = True,
) -> Float[Array, "batch"]:
    """v . (d score / d x) v + 1/2 (v . score)^2, averaged over the probes v.

    Song et al. 2019, arXiv:1905.07088, Eq. 7. `variance_reduced` puts 1/2 |score|^2 in
    the place of the second term (Eq. 8). Either equals `implicit_score_matching` in
    expectation where E[v v^T] = I, as of Rademacher or standard normal probes.
    """
    values, products = _directional(score, x, probes)
    curvature = _inner(probes, products).mean(axis=0)
    if variance_reduced:
        return curvature + half_sum_over_dims(jnp.square(values))
    return curvature + 0.5 * jnp.square(_inner(probes, values[None])).mean(axis=0)


def _directional(score, x, directions):
    """The field, and its derivative along each of the directions."""

    def derivative(direction):
        return jax.jvp(score, (x,), (jnp.broadcast_to(direction, x.shape),))

    return jax.vmap(derivative, out_axes=(None, 0))(directions)


def _inner(first, second):
    products = first * second
    return products.reshape(*products.shape[:2], -1).sum(axis=-1)


def cross_entropy(
    logits: Float[Array, "batch classes"], label: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """-log softmax(logits)[label] of each example, in float32."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_probabilities, label[:, None], axis=-1)[:, 0]


def soft_cross_entropy(
    logits: Float[Array, "batch classes"], target: Float[Array, "batch classes"]
) -> Float[Array, "batch"]:
    """-sum_c target[c] log softmax(logits)[c] of each example, in float32."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(target * log_probabilities, axis=-1)


def token_cross_entropy(
    logits: Float[Array, "batch length vocab"],
    tokens: Int[Array, "batch length"],
    smoothing: float = 0.0,
) -> Float[Array, "batch length"]:
    """-sum_v q(v) log softmax(logits)[v] of each token, in float32.

    q is 1 - `smoothing` on the token and spread evenly over all of the vocabulary for
    the rest (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    right = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    if not smoothing:
        return normalizer - right
    return normalizer - (1 - smoothing) * right - smoothing * logits.mean(-1)


def sigmoid_focal(
    logits: Float[Array, "*batch pixels"],
    target: Float[Array, "*batch pixels"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*batch"]:
    """The mean over pixels of -alpha_t (1 - p_t)^gamma log p_t, in float32.

    p_t is the probability of what `target`, 0 or 1, says, and alpha_t is alpha for 1
    and 1 - alpha for 0 (Lin et al. 2017, arXiv:1708.02002, Eq. 5).
    """
    logits = logits.astype(jnp.float32)
    signed = jnp.where(target > 0, logits, -logits)
    factor = jnp.where(target > 0, alpha, 1 - alpha) * jax.nn.sigmoid(-signed) ** gamma
    return -(factor * jax.nn.log_sigmoid(signed)).mean(-1)


def dice(
    logits: Float[Array, "*batch pixels"], target: Float[Array, "*batch pixels"]
) -> Float[Array, "*batch"]:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of each mask, in float32.

    One less twice what both cover over what each covers (Milletari et al. 2016,
    arXiv:1606.04797, section 3), with one added to both, as in DETR's code.
    """
    chances = jax.nn.sigmoid(logits.astype(jnp.float32))
    common = (chances * target).sum(-1)
    return 1 - (2 * common + 1) / (chances.sum(-1) + target.sum(-1) + 1)
