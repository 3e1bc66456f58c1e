"""Shuffling without a list: position in an endless stream -> index of an example."""

import numpy as np
from jaxtyping import Int64, UInt64

# Leaves one example in 2^32 where it was before any round moved it.
NUM_ROUNDS = 32

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, odd: what the keys of a sequence of draws differ by."""


def permuted(
    positions: Int64[np.ndarray, "batch"], size: int, seed: int
) -> Int64[np.ndarray, "batch"]:
    """The example at each position of a stream of epochs, each in an order of its own.

    Position p is place p % size of epoch p // size, whose order is a permutation of
    `range(size)` that depends on (seed, epoch) only. It is computed for the positions
    asked, in constant memory: the swap-or-not shuffle, whose rounds pair the indices
    (i, pivot - i) and swap each pair or not by a coin that both of them share.

    A table such as `Generator.permutation` would take 8 bytes an example in every
    worker, and NumPy may change its order between versions (NEP 19).

    Source: V. T. Hoang, B. Morris, P. Rogaway, "An Enciphering Scheme Based on a Card
    Shuffle", CRYPTO 2012, Figure 1.
    """
    epochs, index = np.divmod(positions.astype(np.uint64), np.uint64(size))
    key = mix(mix(np.array([seed], np.uint64) + GOLDEN) + epochs)
    for _ in range(NUM_ROUNDS):
        key = mix(key + GOLDEN)
        partner = (key % np.uint64(size) + np.uint64(size) - index) % np.uint64(size)
        coin = mix(key ^ np.maximum(index, partner)) & np.uint64(1)
        index = np.where(coin, partner, index)
    return index.astype(np.int64)


def mix(x: UInt64[np.ndarray, "batch"]) -> UInt64[np.ndarray, "batch"]:
    """Every bit of the result depends on every bit of x, one to one.

    Source: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number
    Generators", OOPSLA 2014, `mix64variant13`.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
