"""Decoding as Python loops over lists, on models small enough to look at everything."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

PAD, EOS = 0, 1


class Chain:
    """Random logits of the next token.

    They depend on the row's kind, the position, and the last two tokens, of which the
    earlier lives in the state: a search that loses track of which state belongs to
    which hypothesis predicts wrongly.
    """

    def __init__(self, vocab_size=5, kinds=1, seed=0, scale=1.5, eos_bonus=0.0):
        rng = np.random.default_rng(seed)
        shape = (kinds, 4, vocab_size, vocab_size, vocab_size)
        self.table = rng.normal(0, scale, shape).astype(np.float32)
        self.table[..., EOS:] += eos_bonus * (np.arange(vocab_size)[EOS:] == EOS)
        self.vocab_size = vocab_size
        self.traces = 0

    def state(self, kinds):
        kinds = jnp.asarray(kinds, jnp.int32)
        return {"kind": kinds, "last": jnp.zeros_like(kinds), "steps": jnp.int32(0)}

    def step(self, state, token):
        self.traces += 1
        kind, last, steps = state["kind"], state["last"], state["steps"]
        logits = jnp.asarray(self.table)[kind, steps % 4, last, token]
        return {"kind": kind, "last": token, "steps": steps + 1}, logits

    def log_probs(self, kind, tokens):
        """Of the token after these."""
        last, token = ([0, *tokens])[-2:]
        position = (len(tokens) - 1) % 4
        logits = self.table[kind, position, last, token].astype(np.float64)
        return logits - np.log(np.sum(np.exp(logits)))

    def attention(self, kind, tokens, width=3):
        """Weights over a source that does not exist, when these have been taken in."""
        weights = np.exp(np.sin(1.7 * np.arange(width) * (tokens[-1] + 1) + kind))
        return weights / weights.sum()


def gnmt(alpha):
    return lambda length: ((5 + length) / (5 + 1)) ** alpha


def power(alpha):
    return lambda length: length**alpha


def greedy(chain, kind, prompt, limit, choose=np.argmax):
    """`(tokens, log_probs)`, the latter of what was chosen."""
    tokens, chosen = list(prompt), []
    while len(tokens) < limit or not chosen:
        log_probs = chain.log_probs(kind, tokens)
        tokens.append(int(choose(log_probs)))
        chosen.append(log_probs[tokens[-1]])
        if tokens[-1] == EOS:
            break
    return tokens, chosen


def everything(chain, kind, prompt, limit, penalty):
    """`(score, tokens)` of every continuation that ends or is at the limit, sorted."""
    found = []
    for length in range(1, limit - len(prompt) + 1):
        inner = [t for t in range(chain.vocab_size) if t != EOS]
        lasts = range(chain.vocab_size) if len(prompt) + length == limit else [EOS]
        for body in itertools.product(inner, repeat=length - 1):
            for last in lasts:
                tokens, total = list(prompt), 0.0
                for token in (*body, last):
                    total += chain.log_probs(kind, tokens)[token]
                    tokens.append(token)
                found.append((total / penalty(length), tokens))
    return sorted(found, reverse=True)


def beam_search(chain, kind, prompt, limit, size, penalty, stop, coverage=0.0):
    """`(score, tokens)` of one row, sorted; fewer than `size` where it found fewer.

    `stop(running, scores, length, longest)` may end it after a step.
    """
    running = [(0.0, list(prompt), np.zeros(3))]
    finished = []
    while running and len(running[0][1]) < max(limit, len(prompt) + 1):
        extended = []
        for total, tokens, attended in running:
            attended = attended + chain.attention(kind, tokens)
            log_probs = chain.log_probs(kind, tokens)
            extended += [
                (total + log_probs[token], [*tokens, token], attended)
                for token in range(chain.vocab_size)
            ]
        best = sorted(extended, key=lambda item: -item[0])[: 2 * size]
        length = len(best[0][1]) - len(prompt)
        at_limit = length + len(prompt) >= limit
        for total, tokens, attended in best[:size]:
            if tokens[-1] == EOS or at_limit:
                covered = coverage * np.sum(np.log(np.minimum(attended, 1)))
                finished.append((total / penalty(length) + covered, tokens))
        finished = sorted(finished, key=lambda item: -item[0])[:size]
        running = [item for item in best if item[1][-1] != EOS and not at_limit][:size]
        scores = [score for score, _ in finished]
        if running and stop(running[0][0], scores, length, limit - len(prompt)):
            break
    return finished


def stops(penalty, size):
    """The rules by the names of ours."""

    def worst(scores):
        return scores[-1] if len(scores) == size else -math.inf

    def highest(running, length, longest):
        return running / max(penalty(length), penalty(longest))

    return {
        "full": lambda running, scores, *_: len(scores) == size,
        "no_better_now": lambda running, scores, length, _: (
            running / penalty(length) <= worst(scores)
        ),
        "no_better_ever": lambda running, scores, length, longest: (
            highest(running, length, longest) <= worst(scores)
        ),
        "best_found": lambda running, scores, length, longest: (
            highest(running, length, longest) <= max(scores, default=-math.inf)
        ),
    }


def padded(rows, width=None):
    """Lists as one array, and their lengths."""
    width = width or max(len(row) for row in rows)
    tokens = [[*row, *[PAD] * (width - len(row))] for row in rows]
    return jnp.asarray(tokens, jnp.int32), jnp.asarray([len(row) for row in rows])


def counted(step):
    """The step, and a list that grows whenever it runs."""
    calls = []

    def counting(state, token):
        jax.debug.callback(lambda: calls.append(1))
        return step(state, token)

    return counting, calls
