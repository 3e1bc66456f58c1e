"""Beam search, against everything there is to find and against plain loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding import scoring
from research.decoding.sampling import Forbid, NoRepeatNgram
from research.decoding.scoring import GNMT, PLAIN, Coverage, Power
from research.decoding.search import beam_search, generate
from research.errors import UserError
from tests.decoding import slow
from tests.decoding.slow import EOS, PAD, Chain, counted, padded

CHAIN = Chain(kinds=3, seed=2, eos_bonus=0.5)
PROMPTS = [[3], [2, 4, 1, 3], [4, 2], [3, 3, 3], [2, 3]]
KINDS = [0, 1, 2, 0, 2]
LIMITS = [9, 10, 10, 7, 3]


@partial(jax.jit, static_argnames=("chain", "size", "max_length", "kwargs"))
def _search(chain, kinds, prompt, lengths, limits, size, max_length, kwargs):
    return beam_search(
        chain.step,
        chain.state(kinds),
        prompt,
        lengths,
        beam_size=size,
        max_length=max_length,
        eos=EOS,
        limits=limits,
        **dict(kwargs),
    )


def search(chain, kinds, prompts, limits, size, max_length=10, **kwargs):
    prompt, lengths = padded(prompts)
    return _search(
        chain,
        jnp.array(kinds),
        prompt,
        lengths,
        jnp.array(limits),
        size,
        max_length,
        tuple(kwargs.items()),
    )


def assert_finds(beams, row, expected, atol=1e-5):
    """`expected`: `(score, tokens)`, best first."""
    length = beams.tokens.shape[-1]
    for place, (score, tokens) in enumerate(expected):
        np.testing.assert_allclose(beams.scores[row, place], score, atol=atol)
        assert beams.lengths[row, place] == len(tokens)
        np.testing.assert_array_equal(
            beams.tokens[row, place], [*tokens, *[PAD] * (length - len(tokens))]
        )
    assert np.all(beams.scores[row, len(expected) :] == -np.inf)


@pytest.mark.parametrize(
    "penalty, formula",
    [
        (PLAIN, slow.power(0)),
        (GNMT(0.6), slow.gnmt(0.6)),
        (Power(-0.5), slow.power(-0.5)),
    ],
    ids=["plain", "gnmt", "power"],
)
def test_a_beam_wide_enough_finds_the_best_of_all(penalty, formula):
    chain = Chain(vocab_size=3, kinds=2, seed=7)
    size = 3**4
    prompts = [[2], [2, 2]]
    beams = search(chain, [0, 1], prompts, [5, 6], size, 6, length_penalty=penalty)
    for row, (prompt, limit) in enumerate(zip(prompts, [5, 6], strict=True)):
        everything = slow.everything(chain, row, prompt, limit, formula)
        assert len(everything) == 1 + 2 + 4 + 8 * 3
        assert_finds(beams, row, everything)


@pytest.mark.parametrize("stop", [scoring.full, scoring.no_better_ever])
def test_a_beam_of_one_is_greedy(stop):
    beams = search(CHAIN, KINDS, PROMPTS, LIMITS, 1, stop=stop)
    prompt, lengths = padded(PROMPTS)
    found = generate(
        CHAIN.step,
        CHAIN.state(KINDS),
        prompt,
        lengths,
        max_length=10,
        eos=EOS,
        limits=jnp.array(LIMITS),
    )
    np.testing.assert_array_equal(beams.tokens[:, 0], found.tokens)
    np.testing.assert_array_equal(beams.lengths[:, 0], found.lengths)
    # Without a penalty a score is the log-probability.
    np.testing.assert_allclose(beams.scores[:, 0], found.log_probs.sum(1), atol=1e-5)
    assert len(set(found.lengths.tolist())) > 2


@pytest.mark.parametrize(
    "penalty, formula, stop, weight",
    [
        (Power(1.0), slow.power(1), "no_better_now", 0.0),
        (Power(2.0), slow.power(2), "no_better_ever", 0.0),
        (Power(-1.0), slow.power(-1), "no_better_now", 0.0),
        (Power(1.0), slow.power(1), "full", 0.0),
        (GNMT(0.6), slow.gnmt(0.6), "best_found", 0.0),
        (GNMT(0.2), slow.gnmt(0.2), "no_better_ever", 0.2),
    ],
    ids=["mean", "long", "short", "full", "gnmt", "coverage"],
)
def test_is_what_a_loop_over_each_row_finds(penalty, formula, stop, weight):
    """Prompts and limits of many lengths side by side."""
    kwargs = {"length_penalty": penalty, "stop": getattr(scoring, stop)}
    if weight:
        kwargs["coverage"] = Coverage(_attention, _valid, weight)
    beams = search(CHAIN, KINDS, PROMPTS, LIMITS, 3, **kwargs)
    rule = slow.stops(formula, 3)[stop]
    rows = zip(KINDS, PROMPTS, LIMITS, strict=True)
    for row, (kind, prompt, limit) in enumerate(rows):
        expected = slow.beam_search(
            CHAIN, kind, prompt, limit, 3, formula, rule, weight
        )
        assert_finds(beams, row, expected)


def _attention(state):
    """`Chain.attention`, over three tokens and one of padding."""
    angle = 1.7 * jnp.arange(3)[None, :] * (state["last"][:, None] + 1)
    weights = jax.nn.softmax(jnp.sin(angle + state["kind"][:, None]), axis=-1)
    return jnp.pad(weights, ((0, 0), (0, 1)))


def _valid(state):
    return jnp.broadcast_to(jnp.arange(4) < 3, (*state["last"].shape, 4))


def test_the_rules_to_stop_differ_and_agree_where_they_should():
    chain, rows = Chain(kinds=40, seed=3, eos_bonus=1.0), range(40)
    prompts = [[3]] * 40

    def run(stop):
        limits = [20] * 40
        return search(
            chain, rows, prompts, limits, 3, 20, length_penalty=Power(1.0), stop=stop
        )

    full, now = run(scoring.full), run(scoring.no_better_now)
    ever, best = run(scoring.no_better_ever), run(scoring.best_found)
    np.testing.assert_array_equal(ever.tokens[:, 0], best.tokens[:, 0])
    assert (ever.tokens != best.tokens).any()
    assert (full.scores[:, 0] < ever.scores[:, 0]).any()
    assert (now.scores[:, 0] < ever.scores[:, 0]).any()
    for other in (full, now, best):
        assert (other.scores[:, 0] <= ever.scores[:, 0]).all()


def test_rows_do_not_know_of_each_other():
    together = search(CHAIN, KINDS, PROMPTS, LIMITS, 3, length_penalty=Power(1.0))
    order = [3, 1, 4, 0, 2]
    shuffled = search(
        CHAIN,
        [KINDS[i] for i in order],
        [PROMPTS[i] for i in order],
        [LIMITS[i] for i in order],
        3,
        length_penalty=Power(1.0),
    )
    for new, old in enumerate(order):
        for part, other in zip(shuffled, together, strict=True):
            np.testing.assert_array_equal(part[new], other[old])


def test_filters_bar_the_way():
    chain = Chain(kinds=3, seed=5, eos_bonus=-3.0)

    def run(**kwargs):
        return search(chain, [0, 1, 2], [[3]] * 3, [10] * 3, 3, **kwargs)

    barred, free = run(filters=(NoRepeatNgram(2), Forbid((4,)))), run()
    assert (barred.scores > -np.inf).all()
    tokens = barred.tokens.reshape(-1, 10).tolist()
    for row, length in zip(tokens, barred.lengths.reshape(-1).tolist(), strict=True):
        pairs = list(zip(row[: length - 1], row[1:length], strict=True))
        assert len(set(pairs)) == len(pairs) and 4 not in row
    assert (free.tokens == 4).any()


def test_where_nothing_may_come_there_is_nothing():
    beams = search(CHAIN, [0], [[3, 2]], [10], 2, filters=(Forbid((0, 1, 2, 3, 4)),))
    assert (beams.scores == -np.inf).all() and (beams.lengths == 2).all()
    assert beams.tokens[0, 0].tolist() == [3, 2, *[PAD] * 8]


def test_without_an_end_all_are_as_long_as_they_may():
    beams = beam_search(
        CHAIN.step,
        CHAIN.state([0]),
        jnp.array([[3]]),
        beam_size=2,
        max_length=6,
        eos=None,
    )
    assert beams.lengths.tolist() == [[6, 6]]


def test_stops_with_the_last_row_and_traces_once():
    chain = Chain(seed=1, eos_bonus=4.0)
    step, calls = counted(chain.step)
    run = jax.jit(
        lambda prompt, lengths: beam_search(
            step,
            chain.state([0, 0]),
            prompt,
            lengths,
            beam_size=2,
            max_length=500,
            eos=EOS,
            length_penalty=GNMT(0.6),
            stop=scoring.best_found,
        )
    )
    run(*padded([[3, 3], [2, 4]]))
    traces = chain.traces
    run(*padded([[2], [4, 4]]))
    jax.effects_barrier()
    assert len(calls) < 40
    assert chain.traces == traces


def test_penalties():
    lengths = jnp.array([1, 7, 25])
    np.testing.assert_allclose(GNMT(0.6)(lengths), [1, 2**0.6, 5**0.6], rtol=1e-6)
    np.testing.assert_allclose(Power(0.5)(lengths), [1, 7**0.5, 5], rtol=1e-6)
    assert PLAIN(lengths).tolist() == [1, 1, 1]
    covered = Coverage(_attention, _valid, 0.5)
    total, valid = jnp.array([0.5, 1.5, 0.0]), jnp.array([1, 1, 0])
    np.testing.assert_allclose(covered(total, valid), 0.5 * np.log(0.5), rtol=1e-6)
    assert np.isfinite(covered(jnp.zeros(3), valid))
    with pytest.raises(UserError, match="coverage weight -1.0: expected at least 0"):
        Coverage(_attention, _valid, -1.0)
