"""One token after another, against a loop over each row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding.prompts import take_rows
from research.decoding.sampling import Forbid, Greedy, Sample, TopK
from research.decoding.search import beam_search, generate
from research.errors import UserError
from tests.decoding.slow import EOS, PAD, Chain, counted, greedy, padded

PROMPTS = [[3], [2, 4, 1, 3], [4, 2], [3, 3, 3]]  # an end of sequence within one
KINDS = [0, 1, 2, 0]
CHAIN = Chain(kinds=3, seed=1, eos_bonus=0.5)


def test_each_row_follows_its_prompt_and_then_the_model():
    prompt, lengths = padded(PROMPTS)
    limits = jnp.array([12, 12, 5, 2])
    run = jax.jit(
        lambda prompt, lengths, limits: generate(
            CHAIN.step,
            CHAIN.state(KINDS),
            prompt,
            lengths,
            max_length=12,
            eos=EOS,
            limits=limits,
        )
    )
    found = run(prompt + 7 * (prompt == PAD), lengths, limits)  # whatever pads it
    traces, ends = CHAIN.traces, set()
    for row, (kind, given, limit) in enumerate(
        zip(KINDS, PROMPTS, limits.tolist(), strict=True)
    ):
        tokens, chosen = greedy(CHAIN, kind, given, limit)
        assert found.lengths[row] == len(tokens)
        ends.add(len(tokens))
        np.testing.assert_array_equal(
            found.tokens[row], [*tokens, *[PAD] * (12 - len(tokens))]
        )
        log_probs = np.zeros(12)
        log_probs[len(given) : len(tokens)] = chosen
        np.testing.assert_allclose(found.log_probs[row], log_probs, atol=1e-6)
    assert len(ends) > 2 and found.tokens.dtype == jnp.int32
    # Other numbers in the same shapes: nothing is traced again.
    run(prompt, jnp.array([1, 1, 1, 3]), limits + 1)
    assert CHAIN.traces == traces


def test_ends_with_the_last_row():
    chain = Chain(seed=1, eos_bonus=4.0)
    step, calls = counted(chain.step)
    prompt, lengths = padded([[3], [2, 4]])
    found = jax.jit(
        lambda: generate(
            step, chain.state([0, 0]), prompt, lengths, max_length=500, eos=EOS
        )
    )()
    jax.effects_barrier()
    assert len(calls) == int(found.lengths.max()) - 1 < 20


def test_without_an_end_every_row_runs_to_the_limit():
    found = generate(
        CHAIN.step, CHAIN.state([0, 1, 2]), jnp.array([[3]] * 3), max_length=9, eos=None
    )
    assert found.lengths.tolist() == [9, 9, 9] and (found.tokens[:, :-1] == EOS).any()


def test_a_prefix_may_be_taken_in_before():
    prompt, lengths = padded([[3, 2, 4], [3, 2, 2, 3]])
    state = CHAIN.state([0, 1])
    kwargs = dict(max_length=10, eos=EOS)
    whole = generate(CHAIN.step, state, prompt, lengths, **kwargs)
    beams = beam_search(CHAIN.step, state, prompt, lengths, beam_size=2, **kwargs)
    for position in range(2):
        state, _ = CHAIN.step(state, prompt[:, position])
    rest = generate(CHAIN.step, state, prompt, lengths, start=2, **kwargs)
    np.testing.assert_array_equal(rest.tokens, whole.tokens)
    rest = beam_search(
        CHAIN.step, state, prompt, lengths, beam_size=2, start=2, **kwargs
    )
    np.testing.assert_array_equal(rest.tokens, beams.tokens)


def sampled(prompt, seed=0, choose=Sample(), max_length=2):  # noqa: B008
    return generate(
        CHAIN.step,
        CHAIN.state([0] * len(prompt)),
        prompt,
        max_length=max_length,
        eos=EOS,
        choose=choose,
        rng=jax.random.key(seed),
    )


def test_draws_follow_the_distribution():
    num = 20_000
    found = sampled(jnp.full((num, 1), 3))
    counts = np.bincount(found.tokens[:, 1], minlength=5) / num
    p = np.exp(CHAIN.log_probs(0, [3]))
    np.testing.assert_allclose(counts, p, atol=5 * 0.5 / num**0.5)
    filtered = sampled(jnp.full((num, 1), 3), choose=Sample((Forbid((4,)), TopK(2))))
    kept = np.argsort(np.where(np.arange(5) == 4, 0, p))[-2:]
    counts = np.bincount(filtered.tokens[:, 1], minlength=5) / num
    expected = np.where(np.isin(np.arange(5), kept), p, 0)
    np.testing.assert_allclose(
        counts, expected / expected.sum(), atol=5 * 0.5 / num**0.5
    )
    # What is told is the model's own, whatever the filters left.
    own = np.log(p)[filtered.tokens[:, 1]]
    np.testing.assert_allclose(filtered.log_probs[:, 1], own, atol=1e-5)


def test_draws_depend_on_key_and_place_only():
    one = sampled(jnp.full((6, 1), 3), max_length=12).tokens
    np.testing.assert_array_equal(
        sampled(jnp.full((6, 1), 3), max_length=12).tokens, one
    )
    assert (sampled(jnp.full((6, 1), 3), seed=1, max_length=12).tokens != one).any()
    others = jnp.array([[3], [2], [4], [3], [2], [4]])
    np.testing.assert_array_equal(
        sampled(others, max_length=12).tokens[jnp.array([0, 3])],
        one[jnp.array([0, 3])],
    )
    assert len(np.unique(one, axis=0)) > 3


def test_every_position_draws_anew():
    chain, prompt = Chain(scale=0.0), jnp.full((2, 1), 3)
    found = generate(
        chain.step,
        chain.state([0, 0]),
        prompt,
        max_length=40,
        eos=None,
        choose=Sample(),
        rng=jax.random.key(0),
    )
    counts = np.bincount(found.tokens[:, 1:].ravel(), minlength=5)
    assert counts.min() > 4


def test_rows_are_taken_along_their_axes():
    state = {"cache": {"key": jnp.ones((2, 3, 4)), "index": jnp.arange(2)}}
    state |= {"encoded": jnp.arange(3), "position": jnp.int32(7)}
    index = jnp.array([2, 0, 0, 2, 1])
    axes = {"cache": 1, "encoded": 0, "position": 0}
    taken = take_rows(state, index, axes)
    assert taken["cache"]["key"].shape == (2, 5, 4)
    assert taken["cache"]["index"].tolist() == [0, 1] and taken["position"] == 7
    assert taken["encoded"].tolist() == index.tolist()
    flat = {"a": jnp.arange(6).reshape(3, 2), "b": jnp.int32(1)}
    assert take_rows(flat, index)["a"][:, 0].tolist() == [4, 0, 0, 4, 2]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"max_length": 4}, "counts the prompt too, which has 4 tokens"),
        ({"prompt": jnp.zeros((2, 0), int)}, r"shape \(2, 0\).*at least one row"),
        ({"prompt_lengths": jnp.array([0, 4])}, r"\[0, 4\]: expected from 1 to 4"),
        ({"prompt_lengths": jnp.array([1, 5])}, r"\[1, 5\]: expected from 1 to 4"),
        ({"start": 4}, "start=4: .* from 0 to 3"),
        ({"start": 2, "prompt_lengths": jnp.array([2, 4])}, "from 3 to 4"),
        ({"choose": Sample()}, "needs a key"),
        ({"beam_size": 0}, "beam_size=0: expected at least 1"),
        ({"beam_size": 2, "max_length": 3}, "max_length=3"),
        ({"beam_size": 2, "vocab_size": 1}, "a vocabulary of 1"),
    ],
)
def test_what_does_not_fit_is_told(change, told):
    change = dict(change)
    chain = Chain(vocab_size=change.pop("vocab_size", 5)) if change else CHAIN
    prompt = change.pop("prompt", jnp.zeros((2, 4), int))
    kwargs = {"prompt_lengths": None, "max_length": 9, "eos": EOS, **change}
    with pytest.raises(UserError, match=told):
        search = beam_search if "beam_size" in change else generate
        search(chain.step, chain.state([0, 0]), prompt, **kwargs)


def test_greedy_is_one_of_the_most_probable():
    logits = jnp.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    assert Greedy()(None, logits, jnp.zeros((2, 1), int), 1).tolist() == [1, 0]
