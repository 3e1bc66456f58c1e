"""Language modelling: each token from those before it, or from those around it."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.decoding.sampling import Choose, Sample
from research.decoding.search import generate
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.sequences import BEGIN, PAD, apply, shift, token_loss, token_weights


@dataclass(frozen=True)
class LanguageModelling:
    """The likelihood of `batch["tokens"]`, (batch, length), token by token.

    Attributes:
      network: called `network(tokens, segments=, positions=, train=)` with what is
        known before each token, returns the logits (batch, length, vocab size).
        Its `decoding(variables, rows, length)` gives what `research.decoding.search`
        needs.
      begin: stands before the first token.
      end: ends what is generated; None is for nothing.
    """

    network: nn.Module
    begin: int = BEGIN
    end: int | None = None

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
        weights = token_weights(tokens, batch, segments)
        loss, metrics = token_loss(logits, tokens, weights)
        return loss, (metrics, changed)

    def generate(
        self,
        variables: Variables,
        rng: Key[Array, ""],
        prompt: Int[Array, "rows prompt"],
        num: int,
        choose: Choose = Sample(),  # noqa: B008, it is frozen
        lengths: Int[Array, "rows"] | None = None,
    ) -> Int[Array, "rows length"]:
        """Each prompt and `num` tokens that follow it; then, and after `end`, padding.

        Args:
          variables: of the network.
          rng: for what is drawn.
          prompt: padded on the right, with anything.
          num: tokens after each, at most.
          choose: how they are chosen.
          lengths: of the prompts; None is for the whole width. A row is what it would
            be alone: all begin at the same place, and shorter prompts end sooner.
        """
        rows, width = prompt.shape
        max_length = 1 + width + num
        # One more, for what stands before the first token.
        sizes = None if lengths is None else 1 + lengths
        step, state, _ = self.network.decoding(variables, rows, max_length)
        found = generate(
            step,
            state,
            jnp.pad(prompt, ((0, 0), (1, 0)), constant_values=self.begin),
            sizes,
            max_length=max_length,
            eos=self.end,
            pad=PAD,
            choose=choose,
            rng=rng,
            limits=None if sizes is None else sizes + num,
        )
        return found.tokens[:, 1:]


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
