"""The next token out of logits: what may be chosen, and how the choice is made.

A filter is a frozen record that maps logits to logits, with minus infinity for what may
not be chosen. Filters apply in order: `(Temperature(0.8), TopP(0.95))` cuts the
distribution that the temperature has flattened or sharpened.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from research.errors import UserError


@runtime_checkable
class Filter(Protocol):
    """Changes the logits of the next token."""

    def __call__(
        self,
        logits: Float[Array, "rows vocab"],
        tokens: Int[Array, "rows length"],
        count: ArrayLike,
    ) -> Float[Array, "rows vocab"]:
        """`tokens`: what each row has so far, of which the first `count` are there."""
        ...


@runtime_checkable
class Choose(Protocol):
    """Chooses the next token of each row."""

    def __call__(
        self,
        rng: Key[Array, ""] | None,
        logits: Float[Array, "rows vocab"],
        tokens: Int[Array, "rows length"],
        count: ArrayLike,
    ) -> Int[Array, "rows"]:
        """The arguments are those of a filter, and a key for what is drawn."""
        ...


def apply_filters(
    filters: Sequence[Filter],
    logits: Float[Array, "rows vocab"],
    tokens: Int[Array, "rows length"],
    count: ArrayLike,
) -> Float[Array, "rows vocab"]:
    """The logits after every filter."""
    for change in filters:
        logits = change(logits, tokens, count)
    return logits


@dataclass(frozen=True)
class Greedy:
    """The most probable token; of equal ones the first."""

    filters: tuple[Filter, ...] = ()

    def __call__(self, rng, logits, tokens, count):
        logits = apply_filters(self.filters, logits, tokens, count)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclass(frozen=True)
class Sample:
    """A draw from the distribution that the filters leave.

    Raises:
      UserError: when called without a key.
    """

    filters: tuple[Filter, ...] = ()

    def __call__(self, rng, logits, tokens, count):
        if rng is None:
            raise UserError("drawing tokens needs a key: pass rng=jax.random.key(seed)")
        logits = apply_filters(self.filters, logits, tokens, count)
        return jax.random.categorical(rng, logits, axis=-1).astype(jnp.int32)


@dataclass(frozen=True)
class Temperature:
    """Logits divided by `value`: below 1 sharper, above 1 flatter."""

    value: float

    def __post_init__(self):
        if not self.value > 0:
            raise UserError(f"temperature {self.value}: expected above 0; 0 is Greedy")

    def __call__(self, logits, tokens, count):
        return logits / self.value


@dataclass(frozen=True)
class TopK:
    """The `k` most probable tokens (Fan et al. 2018, arXiv:1805.04833), ties included.

    All of them where the vocabulary has no more.
    """

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise UserError(f"top-k with k={self.k}: expected at least 1")

    def __call__(self, logits, tokens, count):
        best, _ = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))
        return _keep(logits, logits >= best[:, -1:])


@dataclass(frozen=True)
class TopP:
    """The nucleus: the fewest most probable tokens whose probabilities reach `p`.

    Holtzman et al. 2020, arXiv:1904.09751, Eq. 2-3. Tokens as probable as the last of
    them are kept too.
    """

    p: float

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise UserError(f"top-p with p={self.p}: expected above 0, at most 1")

    def __call__(self, logits, tokens, count):
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending.astype(jnp.float32), axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = before < self.p
        last = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        return _keep(logits, logits >= last)


@dataclass(frozen=True)
class MinP:
    """Tokens at least `p` times as probable as the best one.

    Nguyen et al. 2024, arXiv:2407.01082.
    """

    p: float

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise UserError(f"min-p with p={self.p}: expected from 0 to 1")

    def __call__(self, logits, tokens, count):
        if self.p == 0:
            return logits
        # A ratio of probabilities is a difference of logits.
        best = jnp.max(logits, axis=-1, keepdims=True)
        return _keep(logits, logits >= best + math.log(self.p))


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes what a row already holds less probable, its prompt included.

    Its logits are divided by `value` where positive and multiplied where negative, as
    public libraries do. Differs: Keskar et al. (2019, arXiv:1909.05858, section 4.1)
    divide in both cases, which makes negative ones more probable.
    """

    value: float

    def __post_init__(self):
        if not self.value > 0:
            raise UserError(f"repetition penalty {self.value}: expected above 0")

    def __call__(self, logits, tokens, count):
        penalised = jnp.where(logits < 0, logits * self.value, logits / self.value)
        seen = _mark(logits, tokens, jnp.arange(tokens.shape[1]) < count)
        return jnp.where(seen, penalised, logits)


@dataclass(frozen=True)
class NoRepeatNgram:
    """Bans every token that would end an n-gram of `size` which the row already has.

    Paulus et al. 2018, arXiv:1705.04304, section 2.5 (there trigrams).
    """

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"n-grams of {self.size} tokens: expected at least 1")

    def __call__(self, logits, tokens, count):
        context = self.size - 1
        num_starts = tokens.shape[1] - context
        if num_starts <= 0:
            return logits
        # Clamped where the row is still shorter, which no n-gram then fits into.
        suffix = jax.lax.dynamic_slice_in_dim(tokens, count - context, context, axis=1)
        same = jnp.arange(num_starts) + context < count
        same = jnp.broadcast_to(same, (tokens.shape[0], num_starts))
        for offset in range(context):
            shifted = tokens[:, offset : offset + num_starts]
            same &= shifted == suffix[:, offset : offset + 1]
        return _keep(logits, ~_mark(logits, tokens[:, context:], same))


@dataclass(frozen=True)
class Forbid:
    """Bans tokens for good, such as padding and the unknown word."""

    tokens: tuple[int, ...]

    def __call__(self, logits, tokens, count):
        vocab_size = logits.shape[-1]
        if outside := [t for t in self.tokens if not 0 <= t < vocab_size]:
            raise UserError(
                f"forbidden tokens {outside} are not in a vocabulary of {vocab_size}"
            )
        return logits.at[:, jnp.asarray(self.tokens, jnp.int32)].set(-jnp.inf)


def _keep(
    logits: Float[Array, "rows vocab"], kept: Bool[Array, "rows vocab"]
) -> Float[Array, "rows vocab"]:
    return jnp.where(kept, logits, -jnp.inf)


def _mark(
    logits: Float[Array, "rows vocab"],
    tokens: Int[Array, "rows length"],
    counts: Bool[Array, "..."],
) -> Bool[Array, "rows vocab"]:
    """The tokens that occur in a row, at the places that count."""
    counts = jnp.broadcast_to(counts, tokens.shape)
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros(logits.shape, bool).at[rows, tokens].max(counts)
