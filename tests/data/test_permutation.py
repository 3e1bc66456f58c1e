"""The swap-or-not shuffle against what a uniform permutation would give."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from research.data.permutation import permuted


def epochs(num_epochs: int, size: int, seed: int = 0) -> np.ndarray:
    """The order of each epoch, one a row."""
    return permuted(np.arange(num_epochs * size), size, seed).reshape(num_epochs, size)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1437, 100_003])
def test_each_epoch_is_a_permutation(size):
    for order in epochs(3, size):
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [*epochs(5, 1000), *epochs(5, 1000, seed=1), *epochs(5, 1000, seed=2**63)]
    for one, other in itertools.combinations(orders, 2):
        # As many common places as two independent permutations have: Poisson(1).
        assert np.sum(one == other) < 10


def test_a_position_does_not_depend_on_the_others_asked():
    whole = permuted(np.arange(10_000), 37, seed=3)
    some = np.array([9_999, 0, 5_000, 36, 37, 5_000])
    np.testing.assert_array_equal(permuted(some, 37, seed=3), whole[some])


def test_the_order_is_fixed_for_ever():
    # Runs are resumed under later versions: these numbers may not change.
    assert permuted(np.arange(10), 10, 0).tolist() == [4, 0, 1, 6, 5, 3, 7, 2, 8, 9]
    assert permuted(np.array([0, 10**12]), 10**12, 42).tolist() == [
        505408573067,
        75010359689,
    ]


def test_small_sets_take_all_their_orders_equally_often():
    counts = Counter(map(tuple, epochs(24_000, 4)))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_neighbours_and_fixed_points_are_as_in_random_permutations():
    size, num_epochs = 1437, 300
    orders = epochs(num_epochs, size)
    distance = np.diff(orders, axis=1) % size
    counts = np.bincount(distance.ravel(), minlength=size)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3
    fixed = np.sum(orders == np.arange(size), axis=1)
    assert abs(fixed.mean() - 1) < 5 / np.sqrt(num_epochs)
