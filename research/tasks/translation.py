"""Translation, and any other task from one sequence of tokens to another."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.decoding.scoring import GNMT, LengthPenalty, Stop, no_better_ever
from research.decoding.search import beam_search, generate
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.sequences import (
    BEGIN,
    END,
    apply,
    shift,
    token_loss,
    token_weights,
)


@dataclass(frozen=True)
class Translation:
    """p(target | source), token by token.

    Attributes:
      network: called `network(source, target, train=)` with the target shifted by one,
        and, where the batch has them, `source_segments`, `target_segments`,
        `source_positions` and `target_positions`; returns the logits (batch, target
        length, vocab size). Its `decoding(variables, source, max_length)` gives what
        `research.decoding.search` needs, and its `pad` is the token that fills up rows
        of either side.
      smoothing: of the labels in training (Szegedy et al. 2016).
      begin: stands before the first target token.
      end: is the last target token.
      beam_size: hypotheses in a search; 1 takes the likeliest token at each place.
      length_penalty: of finished hypotheses.
      extra_length: tokens by which a translation may be longer than its source.
      stop: when a search ends.
    """

    network: nn.Module
    smoothing: float = 0.1
    begin: int = BEGIN
    end: int = END
    beam_size: int = 4
    length_penalty: LengthPenalty = GNMT(0.6)
    extra_length: int = 50
    stop: Stop = no_better_ever

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        return self.network.init(rng, batch["source"][:1], batch["target"][:1])

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """Mean nats a target token, smoothed in training; `bits` are not."""
        target, segments = batch["target"], batch.get("target_segments")
        logits, changed = apply(
            self.network,
            variables,
            rng,
            train,
            batch["source"],
            shift(target, self.begin, segments),
            source_segments=batch.get("source_segments"),
            target_segments=segments,
            source_positions=batch.get("source_positions"),
            target_positions=batch.get("target_positions"),
        )
        smoothing = self.smoothing if train else 0.0
        weights = token_weights(target, batch, segments, self.network.pad)
        loss, metrics = token_loss(logits, target, weights, smoothing)
        return loss, (metrics, changed)

    def translate(
        self,
        variables: Variables,
        batch: Batch,
        rng: Key[Array, ""],
    ) -> Int[Array, "batch length"]:
        """The likeliest translation that the search finds: up to `end`, then padding.

        Without what stands before the first token.
        """
        source, pad = batch["source"], self.network.pad
        rows, length = source.shape
        max_length = length + self.extra_length + 1
        step, state, reorder = self.network.decoding(variables, source, max_length)
        prompt = jnp.full((rows, 1), self.begin, jnp.int32)
        limits = (source != pad).sum(1) + self.extra_length + 1
        if self.beam_size == 1:
            found = generate(
                step,
                state,
                prompt,
                max_length=max_length,
                eos=self.end,
                pad=pad,
                limits=limits,
            )
            return found.tokens[:, 1:]
        beams = beam_search(
            step,
            state,
            prompt,
            beam_size=self.beam_size,
            max_length=max_length,
            eos=self.end,
            pad=pad,
            length_penalty=self.length_penalty,
            stop=self.stop,
            limits=limits,
            reorder=reorder,
        )
        return beams.tokens[:, 0, 1:]
