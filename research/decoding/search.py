"""Text from a step function: one token after another, or by beam search.

These are pure functions; call them under `jax.jit`, where each is one `while_loop` that
ends with the last row. A row begins with its own prompt, which it is made to follow, so
prompts of different lengths may stand side by side. They have at least one token, such
as the one that begins every sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.decoding.prompts import Reorder, State, Step, make_prompts, take_rows
from research.decoding.sampling import Choose, Filter, Greedy, apply_filters
from research.decoding.scoring import (
    PLAIN,
    Coverage,
    LengthPenalty,
    Standing,
    Stop,
    no_better_ever,
)
from research.errors import UserError


class Generated(NamedTuple):
    """One continuation of each prompt.

    Attributes:
      tokens: prompt, continuation with its end of sequence, padding.
      lengths: of the first two together.
      log_probs: the model's own of each token after the prompt, whatever filters did;
        0 elsewhere.
    """

    tokens: Int[Array, "rows length"]
    lengths: Int[Array, "rows"]
    log_probs: Float[Array, "rows length"]


class Beams(NamedTuple):
    """The finished hypotheses of each row, best first.

    Attributes:
      tokens: prompt, continuation with its end of sequence, padding.
      lengths: of the first two together.
      scores: minus infinity for a place that no hypothesis takes.
    """

    tokens: Int[Array, "rows beams length"]
    lengths: Int[Array, "rows beams"]
    scores: Float[Array, "rows beams"]


def generate(
    step: Step,
    state: State,
    prompt: Int[Array, "rows prompt"],
    prompt_lengths: Int[Array, "rows"] | None = None,
    *,
    max_length: int,
    eos: int | None,
    pad: int = 0,
    choose: Choose = Greedy(),  # noqa: B008, it is frozen
    rng: Key[Array, ""] | None = None,
    limits: Int[Array, "rows"] | None = None,
    start: int = 0,
) -> Generated:
    """One continuation of each prompt.

    Args:
      step: the model.
      state: before the first token, or after `start` tokens of every row.
      prompt: padded on the right, with anything.
      prompt_lengths: more than `start` each; default the whole width.
      max_length: of prompt and continuation together.
      eos: the token that ends a row where it is chosen; None is for none.
      pad: what follows it.
      choose: `Greedy(filters)` or `Sample(filters)`.
      rng: for `Sample`. What a row draws depends on its number and on the position, not
        on other rows.
      limits: `max_length` of each row; one token is chosen even beyond it.
      start: tokens of every prompt that `state` has taken in already, by a prefill.

    Raises:
      UserError: sizes that do not fit together, or no key for `Sample`.
    """
    given = make_prompts(
        prompt, prompt_lengths, limits, max_length=max_length, start=start, pad=pad
    )

    def body(carry):
        position, state, out, done = carry
        state, logits = step(state, out.tokens[:, position - 1])
        key = None if rng is None else jax.random.fold_in(rng, position)
        token = choose(key, logits, out.tokens, position)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
        kept = done | given.forced(position)  # the prompt's token, or padding
        token = jnp.where(kept, out.tokens[:, position], token)
        out = Generated(
            out.tokens.at[:, position].set(token),
            jnp.where(kept, out.lengths, position + 1),
            out.log_probs.at[:, position].set(jnp.where(kept, 0, log_prob)),
        )
        return position + 1, state, out, done | given.ends(position, token, eos)

    nothing = jnp.zeros(given.tokens.shape, jnp.float32)
    out = Generated(given.tokens, given.lengths, nothing)
    carry = (jnp.int32(start + 1), state, out, jnp.zeros(len(prompt), bool))
    *_, out, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < max_length) & ~jnp.all(carry[-1]), body, carry
    )
    return out


def beam_search(
    step: Step,
    state: State,
    prompt: Int[Array, "rows prompt"],
    prompt_lengths: Int[Array, "rows"] | None = None,
    *,
    beam_size: int,
    max_length: int,
    eos: int | None,
    pad: int = 0,
    length_penalty: LengthPenalty = PLAIN,
    stop: Stop = no_better_ever,
    coverage: Coverage | None = None,
    filters: tuple[Filter, ...] = (),
    limits: Int[Array, "rows"] | None = None,
    start: int = 0,
    reorder: Reorder = take_rows,
) -> Beams:
    """The best continuations of each prompt that a beam of hypotheses finds.

    At every position the `2 * beam_size` most probable extensions of a row's running
    hypotheses are looked at. Those of the first `beam_size` that end are finished; the
    row keeps its `beam_size` finished ones of highest score. The most probable
    `beam_size` that do not end run on. At its limit whatever a row runs is finished as
    it is. What comes out is token for token what transformers' beam search finds, with

    - `length_penalty=Power(a)` for its `length_penalty=a`;
    - `stop=full`, `no_better_now`, `no_better_ever` for its `early_stopping=True`,
      `False`, `"never"`;
    - `filters` for its logits processors.

    Differs from transformers: what cannot be (fewer extensions than beams, or all
    filtered away) is never among the finished; there it is, with a score near -1e9.

    Differs from Tensor2Tensor, whose penalty is `GNMT(alpha)` and whose rule to stop is
    `best_found`, or `no_better_ever` where more than one result is asked for: there a
    hypothesis finishes from any of the `2 * beam_size` places; the rows of a batch stop
    together; and what is unfinished at the limit is no result, unless its row has
    finished nothing, when the scores are log-probabilities.

    Differs from GNMT, whose score is `GNMT(alpha)` with `coverage`: there hypotheses
    and tokens far below the best are pruned (Wu et al. 2016, section 7).

    Args:
      step: the model, called with `beam_size` rows for each prompt, side by side.
      state: with one row for each prompt.
      prompt: this and the others that are not told here as in `generate`.
      beam_size: hypotheses of each row, running and finished.
      length_penalty: divides the log-probability of what is finished.
      stop: when a row is done before its limit.
      coverage: is added to the score of what is finished.
      filters: of log-probabilities, which are not normalised again.
      reorder: takes rows of the state; also at first, one for every beam.

    Raises:
      UserError: sizes that do not fit together.
    """
    if beam_size < 1:
        raise UserError(f"beam_size={beam_size}: expected at least 1")
    given = make_prompts(
        prompt, prompt_lengths, limits, max_length=max_length, start=start, pad=pad
    )
    rows = len(prompt)
    first = jnp.arange(rows)[:, None] * beam_size

    def flat(x: Array) -> Array:
        return x.reshape(rows * beam_size, *x.shape[2:])

    def body(carry):
        position, state, running, total, attended, finished, done = carry
        state, logits = step(state, flat(running[:, :, position - 1]))
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        log_probs = apply_filters(filters, log_probs, flat(running), position)
        vocab_size = log_probs.shape[-1]
        if vocab_size < 2:
            raise UserError(f"a vocabulary of {vocab_size}: expected at least 2 tokens")
        # While a prompt is followed its token is certain: one hypothesis, at 0.
        forced = given.forced(position)[:, None, None]
        is_given = jnp.arange(vocab_size)[None, :] == given.tokens[:, position, None]
        certain = jnp.where(is_given, 0.0, -jnp.inf)[:, None, :]
        log_probs = log_probs.reshape(rows, beam_size, vocab_size)
        extended = total[:, :, None] + jnp.where(forced, certain, log_probs)
        best, index = jax.lax.top_k(extended.reshape(rows, -1), 2 * beam_size)
        parent, token = index // vocab_size, index % vocab_size
        tokens = _pick(running, parent).at[:, :, position].set(token)
        ends = given.ends(position, token, eos)

        length = jnp.maximum(position + 1 - given.lengths, 1)
        scores = best / length_penalty(length)[:, None]
        if coverage is not None:
            seen = coverage.attention(state).reshape(attended.shape)
            attended = _pick(attended + jnp.where(forced, 0, seen), parent)
            valid = coverage.valid(state).reshape(seen.shape)
            scores += coverage(attended, _pick(valid, parent))
        may = (jnp.arange(2 * beam_size) < beam_size)[None, :] & ends & ~done[:, None]
        lengths = jnp.broadcast_to(position + 1, best.shape)
        entering = Beams(tokens, lengths, jnp.where(may, scores, -jnp.inf))
        finished = _best(finished, entering, beam_size)

        total, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), beam_size)
        running = _pick(tokens, chosen)
        state = reorder(state, flat(first + _pick(parent, chosen)))
        attended = None if coverage is None else _pick(attended, chosen)
        standing = Standing(
            running=total[:, 0],
            best=finished.scores[:, 0],
            worst=finished.scores[:, -1],
            length=length,
            limit=given.limits - given.lengths,
        )
        done |= stop(standing, length_penalty) | (total[:, 0] == -jnp.inf)
        return position + 1, state, running, total, attended, finished, done

    state = reorder(state, jnp.repeat(jnp.arange(rows), beam_size))
    attended = None
    if coverage is not None:
        attention = jax.eval_shape(coverage.attention, state)
        attended = jnp.zeros((rows, beam_size, attention.shape[-1]), jnp.float32)
    running = jnp.repeat(given.tokens[:, None], beam_size, axis=1)
    nothing = jnp.full((rows, beam_size), -jnp.inf, jnp.float32)
    lengths = jnp.broadcast_to(given.lengths[:, None], nothing.shape)
    finished = Beams(running, lengths, nothing)
    total = nothing.at[:, 0].set(0)  # the beams are alike at first: one is extended
    done = jnp.zeros(rows, bool)
    carry = (jnp.int32(start + 1), state, running, total, attended, finished, done)
    *_, finished, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < max_length) & ~jnp.all(carry[-1]), body, carry
    )
    return finished


def _pick(x: Array, index: Int[Array, "rows chosen"]) -> Array:
    """Of each row the beams with these numbers."""
    index = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


def _best(old: Beams, new: Beams, beam_size: int) -> Beams:
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
    _, index = jax.lax.top_k(both.scores, beam_size)
    return jax.tree.map(lambda part: _pick(part, index), both)
