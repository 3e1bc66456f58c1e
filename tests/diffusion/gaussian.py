"""Data whose score is known: N(mean, std^2 I)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.diffusion.processes import Process, batch_mul


@dataclass(frozen=True)
class Gaussian:
    process: Process
    mean: float = 0.7
    std: float = 0.5

    def moments(self, t):
        """Mean and standard deviation of each dimension at time t."""
        signal, noise = self.process.marginal(jnp.ones_like(t), t)
        return signal * self.mean, jnp.sqrt((signal * self.std) ** 2 + noise**2)

    def draw(self, rng, shape, time):
        t = jnp.full(shape[:1], time)
        mean, std = self.moments(t)
        return batch_mul(mean, jnp.ones(shape)) + batch_mul(
            std, jax.random.normal(rng, shape)
        )

    def score(self, x, t):
        mean, std = self.moments(t)
        return batch_mul(-1 / std**2, x - batch_mul(mean, jnp.ones_like(x)))
