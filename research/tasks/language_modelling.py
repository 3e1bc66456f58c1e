"""Language modelling: each token from those before it, or from those around it."""

from dataclasses import dataclass

import flax.linen as nn
from jaxtyping import Array, Float, Key

from research.tasks.base import Batch, Metrics, Variables
from research.tasks.sequences import BEGIN, apply, shift, token_loss, token_weights


@dataclass(frozen=True)
class LanguageModelling:
    """The likelihood of `batch["tokens"]`, (batch, length), token by token.

    Attributes:
      network: called `network(tokens, segments=, positions=, train=)` with what is
        known before each token, returns the logits (batch, length, vocab size).
      begin: stands before the first token.
    """

    network: nn.Module
    begin: int = BEGIN

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        return self.network.init(rng, batch["tokens"][:1])

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """Mean nats a token.

        `batch` may hold `segments` (1, 2, ... for sequences packed into a row),
        `positions`, and `weights` of the tokens.
        """
        tokens, segments = batch["tokens"], batch.get("segments")
        logits, changed = apply(
            self.network,
            variables,
            rng,
            train,
            shift(tokens, self.begin, segments),
            segments=segments,
            positions=batch.get("positions"),
        )
        loss, metrics = token_loss(logits, tokens, token_weights(tokens, batch))
        return loss, (metrics, changed)


@dataclass(frozen=True)
class MaskedLanguageModelling:
    """The likelihood of tokens that were hidden or changed, from those around them.

    Attributes:
      network: called `network(tokens, train=)` and, where the batch has them,
        `segments` and `positions`; returns the logits (batch, length, vocab size).
    """

    network: nn.Module

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        return self.network.init(rng, batch["tokens"][:1])

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """Mean nats of `targets`, weighed by `weights`, given `tokens`."""
        logits, changed = apply(
            self.network,
            variables,
            rng,
            train,
            batch["tokens"],
            segments=batch.get("segments"),
            positions=batch.get("positions"),
        )
        weights = token_weights(batch["tokens"], batch)
        loss, metrics = token_loss(logits, batch["targets"], weights)
        return loss, (metrics, changed)
