"""What filters leave, on logits whose probabilities are written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding.sampling import (
    Forbid,
    Greedy,
    MinP,
    NoRepeatNgram,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    apply_filters,
)
from research.errors import UserError

P = np.array([[0.1, 0.4, 0.05, 0.3, 0.15], [0.05, 0.05, 0.2, 0.2, 0.5]])
LOGITS = jnp.asarray(np.log(P) + 3, jnp.float32)
NOTHING = jnp.zeros((2, 4), jnp.int32)


def kept(change, logits=LOGITS, tokens=NOTHING, count=0):
    """The tokens of each row that are left; their logits are as they were."""
    after = change(logits, tokens, count)
    left = after > -jnp.inf
    np.testing.assert_array_equal(after[left], logits[left])
    return [np.flatnonzero(row).tolist() for row in left]


@pytest.mark.parametrize(
    "change, left",
    [
        (TopK(1), [[1], [4]]),
        (TopK(2), [[1, 3], [2, 3, 4]]),  # of equal ones all
        (TopK(9), [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (TopP(0.3), [[1], [4]]),  # always one
        (TopP(0.6), [[1, 3], [2, 3, 4]]),
        (TopP(0.8), [[1, 3, 4], [2, 3, 4]]),
        (TopP(1.0), [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (MinP(0.0), [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (MinP(0.3), [[1, 3, 4], [2, 3, 4]]),
        (MinP(1.0), [[1], [4]]),
        (Forbid((1, 4)), [[0, 2, 3], [0, 2, 3]]),
    ],
    ids=str,
)
def test_what_may_still_be_chosen(change, left):
    assert kept(change) == left


def test_filters_apply_in_order():
    filters = (Temperature(0.5), TopP(0.6))
    after = apply_filters(filters, LOGITS, NOTHING, 0)
    # Squared: .4^2 alone is more than 0.53 of the first row, .5^2 0.73 of the other.
    left = [np.flatnonzero(row > -np.inf).tolist() for row in np.asarray(after)]
    assert left == [[1, 3], [4]]
    np.testing.assert_allclose(after[0, 1], 2 * LOGITS[0, 1], rtol=1e-6)
    assert kept(TopP(0.6)) == [[1, 3], [2, 3, 4]]
    choice = Greedy((Forbid((1,)), Forbid((4,))))(None, LOGITS, NOTHING, 0)
    assert choice.tolist() == [3, 2] and choice.dtype == jnp.int32


def test_what_a_row_has_is_less_probable():
    logits = jnp.array([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    tokens = jnp.array([[0, 1, 2], [2, 2, 0]])
    after = RepetitionPenalty(2.0)(logits, tokens, 2)
    np.testing.assert_array_equal(after, [[1, -4, 1], [2, -2, 0.5]])


@pytest.mark.parametrize(
    "size, tokens, count, banned",
    [
        (1, [3, 1, 3, 0], 3, [1, 3]),
        (2, [1, 2, 1, 0], 3, [2]),
        (2, [1, 2, 1, 0], 2, []),
        (3, [1, 2, 4, 1, 2, 3, 1, 2], 8, [3, 4]),
        (3, [1, 2, 4, 1, 2, 3, 1, 2], 5, [4]),
        (3, [1, 1, 1, 0], 3, [1]),
        (3, [1, 2], 1, []),
        (4, [0, 0], 2, []),
    ],
)
def test_no_ngram_comes_twice(size, tokens, count, banned):
    tokens = jnp.array([tokens, [4] * len(tokens)])
    left, other = kept(NoRepeatNgram(size), tokens=tokens, count=count)
    assert left == [t for t in range(5) if t not in banned]
    assert other == ([0, 1, 2, 3] if count >= size else [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: Temperature(0.0), "temperature 0.0: expected above 0; 0 is Greedy"),
        (lambda: TopK(0), "k=0: expected at least 1"),
        (lambda: TopP(0.0), "p=0.0: expected above 0, at most 1"),
        (lambda: TopP(1.5), "p=1.5"),
        (lambda: MinP(-0.1), "p=-0.1: expected from 0 to 1"),
        (lambda: RepetitionPenalty(0.0), "penalty 0.0: expected above 0"),
        (lambda: NoRepeatNgram(0), "n-grams of 0 tokens"),
        (lambda: kept(Forbid((2, 5))), r"\[5\] are not in a vocabulary of 5"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(UserError, match=told):
        make()
