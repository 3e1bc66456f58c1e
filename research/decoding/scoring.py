"""How hypotheses of different lengths compare in a beam search, and when it may stop.

The score of a finished hypothesis is log P / penalty(length) + coverage, its length
being the tokens after the prompt, the end of sequence included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.errors import UserError

LengthPenalty = Callable[[Int[Array, "..."]], Float[Array, "..."]]
"""Lengths from 1 on to what a log-probability is divided by, above zero."""


@dataclass(frozen=True)
class GNMT:
    """((5 + length) / 6)^alpha (Wu et al. 2016, arXiv:1609.08144, Eq. 14).

    With alpha 0.6 and a beam of 4 that of Vaswani et al. (2017, arXiv:1706.03762,
    section 6.1) and of Tensor2Tensor.
    """

    alpha: float = 0.6

    def __call__(self, length: Int[Array, "..."]) -> Float[Array, "..."]:
        return ((5 + jnp.float32(length)) / 6) ** self.alpha


@dataclass(frozen=True)
class Power:
    """length^alpha: alpha 0 is plain log-probability, 1 the mean over the tokens.

    What transformers' `length_penalty` is; fairseq's `lenpen` too.
    """

    alpha: float = 1.0

    def __call__(self, length: Int[Array, "..."]) -> Float[Array, "..."]:
        return jnp.float32(length) ** self.alpha


PLAIN = Power(0.0)
"""No penalty."""


@dataclass(frozen=True)
class Coverage:
    """weight * sum over source of log min(attention summed over target, 1).

    Wu et al. 2016, Eq. 14 (there beta, 0.2): it prefers hypotheses that have looked at
    all of the source.

    Attributes:
      attention: the state after a step to the weights over the source with which its
        tokens were predicted, (rows, source); of rows and beams while searching.
      valid: the state to 1 for source tokens and 0 for padding, (rows, source).
      weight: beta, at least 0.
    """

    attention: Callable[[Any], Float[Array, "rows source"]]
    valid: Callable[[Any], Array]
    weight: float = 0.2

    def __post_init__(self):
        if self.weight < 0:
            raise UserError(f"coverage weight {self.weight}: expected at least 0")

    def __call__(
        self, total: Float[Array, "... source"], valid: Array
    ) -> Float[Array, "..."]:
        """The term of the score, at most 0.

        Args:
          total: attention summed over the target, of each source token.
          valid: of the same shape.
        """
        # No log of zero, so that what never looked at a token can still be compared.
        seen = jnp.clip(total, jnp.finfo(jnp.float32).tiny, 1)
        return self.weight * jnp.sum(jnp.where(valid > 0, jnp.log(seen), 0), axis=-1)


class Standing(NamedTuple):
    """How far the search of each row has come.

    Attributes:
      running: the log-probability of its best unfinished hypothesis.
      best: the score of the first of its finished hypotheses, or minus infinity.
      worst: the score of the last of its finished hypotheses; minus infinity while
        there are fewer than the beam holds.
      length: of its unfinished hypotheses.
      limit: what this length can become.
    """

    running: Float[Array, "rows"]
    best: Float[Array, "rows"]
    worst: Float[Array, "rows"]
    length: Int[Array, "rows"]
    limit: Int[Array, "rows"]


Stop = Callable[[Standing, LengthPenalty], Bool[Array, "rows"]]
"""Which rows search no longer. What they have finished until then is their result."""


def full(standing: Standing, penalty: LengthPenalty) -> Bool[Array, "rows"]:
    """As many are finished as the beam holds: transformers' `early_stopping=True`."""
    return standing.worst > -jnp.inf


def no_better_now(standing: Standing, penalty: LengthPenalty) -> Bool[Array, "rows"]:
    """The best unfinished one would not enter if it ended at its present length.

    transformers' `early_stopping=False`. A guess: where the penalty favours length, it
    might still come to.
    """
    return standing.running / penalty(standing.length) <= standing.worst


def no_better_ever(standing: Standing, penalty: LengthPenalty) -> Bool[Array, "rows"]:
    """No unfinished hypothesis can enter any more, at whatever length it ends.

    transformers' `early_stopping="never"`. Holds for penalties that grow with the
    length, and for those that fall with it.
    """
    return _bound(standing, penalty) <= standing.worst


def best_found(standing: Standing, penalty: LengthPenalty) -> Bool[Array, "rows"]:
    """No unfinished hypothesis can become the best any more.

    The first result is that of `no_better_ever`, sooner; the others are what there is.
    Tensor2Tensor's rule where one result is asked for.
    """
    return _bound(standing, penalty) <= standing.best


def _bound(standing: Standing, penalty: LengthPenalty) -> Float[Array, "rows"]:
    """The highest score that an unfinished hypothesis can still get."""
    divisor = jnp.maximum(penalty(standing.length), penalty(standing.limit))
    return standing.running / divisor
