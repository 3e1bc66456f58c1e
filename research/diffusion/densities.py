"""Densities whose score is known: what learnt scores and samplers are held against."""

from dataclasses import dataclass
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

    def log_density(
        self,
        x: Float[Array, "batch dim"],
        noise_std: Float[Array, "batch"] | float = 0.0,
    ) -> Float[Array, "batch"]:
        """In nats; of the mixture plus noise of that deviation, if there is any."""
        return jax.nn.logsumexp(self._log_joint(x, noise_std), axis=-1)

    def score(
        self,
        x: Float[Array, "batch dim"],
        noise_std: Float[Array, "batch"] | float = 0.0,
    ) -> Float[Array, "batch dim"]:
        """The gradient of `log_density`."""
        # Towards each mean, by the probability that x came from it.
        mean = self.responsibilities(x, noise_std) @ jnp.asarray(self.means)
        return (mean - x) / self._variance(x, noise_std)

    def sample(self, rng: Key[Array, ""], num: int) -> Float[Array, "num dim"]:
        mode_rng, noise_rng = jax.random.split(rng)
        logits = jnp.log(jnp.asarray(self.weights))
        modes = jax.random.categorical(mode_rng, logits, shape=(num,))
        means = jnp.asarray(self.means)[modes]
        return means + self.std * jax.random.normal(noise_rng, means.shape)

    def responsibilities(
        self,
        x: Float[Array, "batch dim"],
        noise_std: Float[Array, "batch"] | float = 0.0,
    ) -> Float[Array, "batch modes"]:
        """The probability of each mode given x."""
        return jax.nn.softmax(self._log_joint(x, noise_std), axis=-1)

    def _variance(self, x, noise_std):
        return self.std**2 + jnp.broadcast_to(noise_std, x.shape[:1])[:, None] ** 2

    def _log_joint(self, x, noise_std):
        means, weights = jnp.asarray(self.means), jnp.asarray(self.weights)
        squares = jnp.sum((x[:, None] - means[None]) ** 2, axis=-1)
        variance = self._variance(x, noise_std)
        normalizer = 0.5 * x.shape[-1] * jnp.log(2 * jnp.pi * variance)
        return jnp.log(weights)[None] - 0.5 * squares / variance - normalizer
