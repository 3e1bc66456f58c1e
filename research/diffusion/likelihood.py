"""Exact likelihoods and latent codes by the probability flow ODE.

The instantaneous change of variables along the ODE dx = F(x, t) dt gives

    log p(x(0)) = log p(x(1)) + integral from 0 to 1 of div F(x(t), t) dt

(Song et al. 2021, arXiv:2011.13456, appendix D.2). The divergence is estimated without
bias from probes v as v . (dF/dx) v (Skilling 1989; Hutchinson 1990).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.diffusion.processes import Process, Score, probability_flow
from research.diffusion.samplers import integrate


def log_likelihood(
    rng: Key[Array, ""],
    score: Score,
    process: Process,
    x: Float[Array, "batch ..."],
    *,
    num_probes: int = 1,
    min_time: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> tuple[Float[Array, "batch"], Float[Array, "batch ..."], Int[Array, ""]]:
    """Log-density in nats of each example, its latent, and the score evaluations.

    One Rademacher probe per example is the published estimator; the standard deviation
    of the estimate falls as 1/sqrt(num_probes), and so each evaluation counted costs
    the score and `num_probes` directional derivatives of it. The batch is integrated
    as one system; all values are NaN if the solver fails (see `samplers.integrate`).
    """
    flow = probability_flow(process, score)
    probes = jax.random.rademacher(rng, (num_probes, *x.shape), x.dtype)

    def vector_field(time, state):
        x, _ = state
        t = jnp.full(x.shape[:1], time)

        def derivative(probe):
            return jax.jvp(lambda x: flow.drift(x, t), (x,), (probe,))

        drift, products = jax.vmap(derivative, out_axes=(None, 0))(probes)
        terms = (probes * products).reshape(num_probes, x.shape[0], -1)
        return drift, jnp.sum(terms, axis=-1).mean(axis=0)

    (latents, change), evaluations = integrate(
        vector_field,
        (x, jnp.zeros(x.shape[:1])),
        start=min_time,
        stop=1.0,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
    )
    return process.log_prior(latents) + change, latents, evaluations


def encode(
    score: Score,
    process: Process,
    x: Float[Array, "batch ..."],
    *,
    min_time: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
    """The latents that data flow to, and the number of score evaluations."""
    return _transport(score, process, x, min_time, 1.0, rtol, atol)


def decode(
    score: Score,
    process: Process,
    latents: Float[Array, "batch ..."],
    *,
    min_time: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
    """The data that latents flow from: the inverse of `encode`."""
    return _transport(score, process, latents, 1.0, min_time, rtol, atol)


def interpolate(
    first: Float[Array, "*shape"], second: Float[Array, "*shape"], num: int
) -> Float[Array, "num *shape"]:
    """`num` latents on the great circle from one latent to another, both included.

    Latents of a Gaussian prior lie near a sphere, which a straight line would leave
    (Song et al. 2021, arXiv:2011.13456, appendix D.4; Shoemake 1985). Decode them as a
    batch for the images between two encoded ones.
    """
    cosine = jnp.vdot(first, second) / (
        jnp.linalg.norm(first) * jnp.linalg.norm(second)
    )
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    # In proportion to the sines; for parallel latents a straight line.
    parts = jnp.linspace(0.0, 1.0, num)
    near = jnp.where(angle > 1e-4, jnp.sin((1 - parts) * angle), 1 - parts)
    far = jnp.where(angle > 1e-4, jnp.sin(parts * angle), parts)
    scale = jnp.where(angle > 1e-4, jnp.sin(angle), 1.0)
    return (
        jnp.tensordot(near, first, axes=0) + jnp.tensordot(far, second, axes=0)
    ) / scale


def _transport(score, process, x, start, stop, rtol, atol):
    flow = probability_flow(process, score)
    return integrate(
        lambda time, x: flow.drift(x, jnp.full(x.shape[:1], time)),
        x,
        start=start,
        stop=stop,
        rtol=rtol,
        atol=atol,
    )
