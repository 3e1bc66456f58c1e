"""The score of a density of vectors, learnt from draws by any of four objectives.

The objectives agree up to a constant and differ in what they need: the true score, an
exact trace, random projections of it, or noise (Song & Ermon 2019, arXiv:1907.05600,
section 2; Song et al. 2019, arXiv:1905.07088).
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.diffusion.densities import Density
from research.losses import (
    Field,
    explicit_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)
from research.tasks.base import Batch, Metrics, Variables


@runtime_checkable
class Objective(Protocol):
    """What pulls a field towards the score of the density that x was drawn from."""

    def __call__(
        self, rng: Key[Array, ""], score: Field, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch"]:
        """The loss of each example."""
        ...


@dataclass(frozen=True)
class Explicit:
    """The Fisher divergence itself, where the density is known."""

    density: Density

    def __call__(
        self, rng: Key[Array, ""], score: Field, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch"]:
        return explicit_score_matching(score(x), self.density.score(x))


@dataclass(frozen=True)
class Implicit:
    """Hyvarinen's objective with the exact trace."""

    def __call__(
        self, rng: Key[Array, ""], score: Field, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch"]:
        return implicit_score_matching(score, x)


@dataclass(frozen=True)
class Sliced:
    """Hyvarinen's objective along random directions."""

    num_probes: int = 1
    variance_reduced: bool = True
    probes: Literal["rademacher", "normal"] = "rademacher"

    def __call__(
        self, rng: Key[Array, ""], score: Field, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch"]:
        draw = getattr(jax.random, self.probes)
        probes = draw(rng, (self.num_probes, *x.shape), x.dtype)
        return sliced_score_matching(score, x, probes, self.variance_reduced)


@dataclass(frozen=True)
class Denoising:
    """The score of the density perturbed by noise of one deviation `std`."""

    std: float

    def __call__(
        self, rng: Key[Array, ""], score: Field, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch"]:
        noise = jax.random.normal(rng, x.shape)
        return explicit_score_matching(score(x + self.std * noise), -noise / self.std)


@dataclass(frozen=True)
class VectorScore:
    """A field fitted to the score of the density of `batch["x"]`, (batch, dim).

    Attributes:
      network: called `network(x)`, returns like x.
      objective: the loss.
    """

    network: nn.Module
    objective: Objective

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        return self.network.init(rng, batch["x"][:1])

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The objective's mean over the batch."""
        losses = self.objective(rng, lambda x: self.score(variables, x), batch["x"])
        mask = batch.get("mask", jnp.ones_like(losses))
        total, count = jnp.sum(mask * losses), jnp.sum(mask)
        return total / jnp.maximum(count, 1), ({"loss": (total, count)}, {})

    def score(
        self, variables: Variables, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch dim"]:
        """The learnt score."""
        return jnp.asarray(self.network.apply(variables, x))
