"""Classification of sequences of tokens."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.losses import cross_entropy
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.sequences import apply


@dataclass(frozen=True)
class SequenceClassification:
    """p(label | tokens).

    Attributes:
      network: called `network(tokens, train=)`, returns the logits (batch, classes).
    """

    network: nn.Module

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        return self.network.init(rng, batch["tokens"][:1])

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The mean cross-entropy of `label`, and the accuracy."""
        logits, changed = apply(self.network, variables, rng, train, batch["tokens"])
        losses = cross_entropy(logits, batch["label"])
        mask = batch.get("mask", jnp.ones_like(losses))
        right = jnp.argmax(logits, axis=-1) == batch["label"]
        total, count = jnp.sum(mask * losses), jnp.sum(mask)
        metrics = {"loss": (total, count), "accuracy": (jnp.sum(mask * right), count)}
        return total / jnp.maximum(count, 1), (metrics, changed)
