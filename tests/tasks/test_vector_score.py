import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.diffusion.densities import GaussianMixture
from research.layers.mlp import Mlp
from research.losses import explicit_score_matching
from research.tasks.vector_score import (
    Denoising,
    Explicit,
    Implicit,
    Sliced,
    VectorScore,
)

DENSITY = GaussianMixture(means=((1.0, 0.0), (-1.0, 0.5)), weights=(0.7, 0.3), std=0.8)


@pytest.mark.parametrize(
    "objective, bound",
    [
        (Explicit(DENSITY), 0.01),
        (Implicit(), 0.05),
        (Sliced(), 0.05),
        (Sliced(variance_reduced=False, probes="normal"), 0.08),
        (Denoising(0.2), 0.05),
    ],
    ids=str,
)
def test_every_objective_reaches_the_true_score(objective, bound):
    """The Fisher divergence starts above a half."""
    task = VectorScore(Mlp((64, 64)), objective)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 600))
    test = DENSITY.sample(jax.random.key(9), 4000)

    def divergence(params):
        score = task.score({"params": params}, test)
        return explicit_score_matching(score, DENSITY.score(test)).mean()

    @jax.jit
    def train(params):
        def step(carry, rng):
            params, state = carry
            x_rng, rng = jax.random.split(rng)
            batch = {"x": DENSITY.sample(x_rng, 256)}
            grads, _ = jax.grad(
                lambda p: task.loss({"params": p}, batch, rng, True), has_aux=True
            )(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        rngs = jax.random.split(jax.random.key(1), 600)
        return jax.lax.scan(step, (params, optimizer.init(params)), rngs)[0][0]

    params = task.init(jax.random.key(0), {"x": test})["params"]
    assert divergence(params) > 0.5
    assert divergence(train(params)) < bound


def test_mask_counts_padding_in_neither():
    task = VectorScore(Mlp((4,)), Implicit())
    x = jax.random.normal(jax.random.key(0), (4, 2))
    variables = task.init(jax.random.key(0), {"x": x})

    def loss(batch):
        return task.loss(variables, batch, jax.random.key(1), False)

    _, (whole, _) = loss({"x": x[:3]})
    value, (padded, _) = loss({"x": x, "mask": jnp.array([1.0, 1, 1, 0])})
    np.testing.assert_allclose(padded["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(value, whole["loss"][0] / 3, rtol=1e-6)
