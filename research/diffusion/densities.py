"""Densities whose score is known: what learnt scores and samplers are held against."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


@runtime_checkable
class Density(Protocol):
    """A probability density over vectors."""

    def log_density(self, x: Float[Array, "batch dim"]) -> Float[Array, "batch"]:
        """In nats."""
        ...

    def score(self, x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        """The gradient of the log-density."""
        ...

    def sample(self, rng: Key[Array, ""], num: int) -> Float[Array, "num dim"]:
        """Independent draws."""
        ...


@dataclass(frozen=True)
class GaussianMixture(Density):
    """Sum of `weights[k]` N(`means[k]`, `std`^2 I).

    The defaults are the two modes of Song & Ermon 2019 (arXiv:1907.05600, Fig. 2).
    """

    means: tuple[tuple[float, ...], ...] = ((5.0, 5.0), (-5.0, -5.0))
    weights: tuple[float, ...] = (0.8, 0.2)
    std: float = 1.0

    def log_density(self, x: Float[Array, "batch dim"]) -> Float[Array, "batch"]:
        return jax.nn.logsumexp(self._log_joint(x), axis=-1)

    def score(self, x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        # Towards each mean, by the probability that x came from it.
        mean = self.responsibilities(x) @ jnp.asarray(self.means)
        return (mean - x) / self.std**2

    def sample(self, rng: Key[Array, ""], num: int) -> Float[Array, "num dim"]:
        mode_rng, noise_rng = jax.random.split(rng)
        modes = jax.random.categorical(mode_rng, self._log_weights(), shape=(num,))
        means = jnp.asarray(self.means)[modes]
        return means + self.std * jax.random.normal(noise_rng, means.shape)

    def responsibilities(
        self, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch modes"]:
        """The probability of each mode given x."""
        return jax.nn.softmax(self._log_joint(x), axis=-1)

    def smoothed(self, noise_std: Float[Array, ""] | float) -> "GaussianMixture":
        """The density of x + noise of that standard deviation."""
        std = (self.std**2 + noise_std**2) ** 0.5
        return replace(self, std=std)

    def _log_weights(self):
        return jnp.log(jnp.asarray(self.weights))

    def _log_joint(self, x):
        dim = len(self.means[0])
        squares = jnp.sum((x[:, None] - jnp.asarray(self.means)) ** 2, axis=-1)
        normalizer = 0.5 * dim * jnp.log(2 * jnp.pi * self.std**2)
        return self._log_weights() - 0.5 * squares / self.std**2 - normalizer
