"""Sequence tasks that are made up: each example a pure function of (seed, index).

They may be as many as wanted, for little is kept. The draws are those of this
file alone: no version of NumPy changes them.

Ids are as everywhere: 0 to 3 are special, and the task's own symbols follow.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from research.data.permutation import GOLDEN, mix, permuted
from research.data.sources import Example, Lazy, Source, known
from research.data.tokenizers import BEGIN, NUM_SPECIAL, Symbols
from research.errors import UserError


def draws(seed: int, index: int, start: int, num: int) -> UInt64[np.ndarray, "num"]:
    """Random words number `start` and following of the stream of (seed, index).

    Source: SplitMix64, whose counter begins at a hash of the two (see `mix`).
    """
    key = mix(mix(np.array([seed], np.uint64) + GOLDEN) + np.uint64(index))
    counter = np.arange(start + 1, start + num + 1, dtype=np.uint64)
    return mix(key + GOLDEN * counter)


def below(high: int, words: UInt64[np.ndarray, "num"]) -> Int64[np.ndarray, "num"]:
    """A number in [0, high) from each random word; high is small beside 2^32."""
    return ((words >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(
        np.int64
    )


def _symbols(seed: int, index: int, num: int, high: int) -> Int32[np.ndarray, "num"]:
    numbers = below(high, draws(seed, index, 0, num))
    return (NUM_SPECIAL + numbers).astype(np.int32)


# Copies


@dataclass(frozen=True)
class CopyTask:
    """A word, then the same again: `tokens` are `sep w sep w`, int32 (2 + 2 length,).

    `weights`, float32, is 1 where a token is to be predicted: in the second word. The
    separator is the id of a sequence's beginning.

    With length=511 and num_symbols=127 it is the duplication task of N. Kitaev et al.,
    "Reformer", ICLR 2020, arXiv:2001.04451, section 5.

    Attributes:
      num: how many examples.
      length: of the word.
      num_symbols: that its letters are drawn from.
      seed: other seeds give other words.
    """

    num: int
    length: int = 24
    num_symbols: int = 10
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return NUM_SPECIAL + self.num_symbols

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        word = _symbols(self.seed, _within(index, self), self.length, self.num_symbols)
        return _twice(word, word)


@dataclass(frozen=True)
class ReverseTask:
    """A word, then the same backwards; all else is as in `CopyTask`."""

    num: int
    length: int = 24
    num_symbols: int = 10
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return NUM_SPECIAL + self.num_symbols

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        word = _symbols(self.seed, _within(index, self), self.length, self.num_symbols)
        return _twice(word, word[::-1])


def _twice(first: np.ndarray, second: np.ndarray) -> Example:
    separator = np.array([BEGIN], np.int32)
    before, after = 2 + len(first), len(second)
    weights = np.repeat(np.array([0, 1], np.float32), [before, after])
    tokens = np.concatenate([separator, first, separator, second])
    return {"tokens": tokens, "weights": weights}


# Sums


@dataclass(frozen=True)
class ModularSum:
    """The sum of the last few numbers at every place, modulo `modulus`.

    `tokens` are x, int32 (length,), and `targets` y_i = x_i + x_{i-1} + x_{i-2} modulo
    8, where what stands before the beginning is 0; both are ids, the number plus 4.

    Attributes:
      num: how many examples.
      length: of each.
      modulus: 8 above.
      num_terms: 3 above.
      seed: other seeds give other numbers.
    """

    num: int
    length: int = 16
    modulus: int = 8
    num_terms: int = 3
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return NUM_SPECIAL + self.modulus

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        tokens = _symbols(self.seed, _within(index, self), self.length, self.modulus)
        numbers = tokens - NUM_SPECIAL
        sums = np.convolve(numbers, np.ones(self.num_terms, np.int32))[: self.length]
        targets = NUM_SPECIAL + sums % self.modulus
        return {"tokens": tokens, "targets": targets.astype(np.int32)}


# ListOps

_OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")

LISTOPS = Symbols(
    (*"0123456789", *_OPERATORS, "]"),
    # They make the tree binary, and are dropped by the Long Range Arena too.
    ignored=("(", ")"),
)
"""The vocabulary of ListOps; it reads the files of others."""


_HASHES = {"train": (0, 1), "validation": (2,), "test": (3,)}
"""Of the trees of each split, modulo 4."""


def _median(values: list[int]) -> int:
    """Rounded down, where two numbers are in the middle."""
    ordered, last = sorted(values), len(values) - 1
    return (ordered[last // 2] + ordered[-(-last // 2)]) // 2


_FUNCTIONS: tuple[Callable[[list[int]], int], ...] = (
    min,
    max,
    _median,
    lambda values: sum(values) % 10,
)


@dataclass(frozen=True)
class ListOps:
    """Nested lists of digits to evaluate: `tokens`, int32 (any length,), and `label`.

    [MAX 2 9 [MIN 4 7 ] 0 ] is 9. A node is an operator with probability 1/4, else a
    digit, and always a digit at depth `max_depth`, the root having depth 1. The
    operators are minimum, maximum, median rounded down, and sum modulo 10, of 2 to
    `max_args` arguments. Trees of other lengths than asked are drawn again. The default
    is the setting of the Long Range Arena: 96000, 2000 and 2000 examples of 501 to 1999
    tokens.

    Source: N. Nangia, S. Bowman, "ListOps", NAACL SRW 2018, arXiv:1804.06028; Y. Tay et
    al. 2020, arXiv:2011.04006, lra_benchmarks/data/listops.py of google-research/
    long-range-arena.

    Differs: there a set drops what was drawn before. Here a hash of a tree says which
    split it belongs to, so that no two splits share one, but a short tree may occur
    twice in a split.

    Attributes:
      num: how many examples.
      split: half of all trees are for training, a quarter each for the others.
      max_depth: of a tree.
      max_args: of an operator.
      min_length: every example is longer: an operator with its bracket is 2 tokens.
      max_length: every example is shorter.
      only_operators: whether the root is always an operator.
      seed: other seeds give other trees.
    """

    num: int
    split: Literal["train", "validation", "test"] = "train"
    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000
    only_operators: bool = False
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return LISTOPS.vocab_size

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        hashes = _HASHES[known(self.split, _HASHES)]
        pull = stream(self.seed, _within(index, self)).__next__
        while True:
            tree: list[int] = []
            label = self._grow(tree, 1, pull)
            if self.min_length < len(tree) < self.max_length:
                tokens = (NUM_SPECIAL + np.array(tree)).astype(np.int32)
                if zlib.crc32(tokens.astype("<i4").tobytes()) % 4 in hashes:
                    return {"tokens": tokens, "label": np.int32(label)}

    def _grow(self, tree: list[int], depth: int, pull: Callable[[], int]) -> int:
        """Appends a node's symbols, and returns its value.

        A tree that has become too long is left unfinished, with a value of no meaning.
        The draws are scaled as in `below`.
        """
        forced = self.only_operators and depth == 1
        if not forced and (depth >= self.max_depth or pull() >= 2**62):  # 3/4 of 2^64
            digit = (pull() >> 32) * 10 >> 32
            tree.append(digit)
            return digit
        number = 2 + ((pull() >> 32) * (self.max_args - 1) >> 32)
        operator = (pull() >> 32) * len(_OPERATORS) >> 32
        tree.append(10 + operator)
        values = []
        while len(values) < number and len(tree) < self.max_length:
            values.append(self._grow(tree, depth + 1, pull))
        tree.append(10 + len(_OPERATORS))
        return _FUNCTIONS[operator](values) if values else 0


def stream(seed: int, index: int, block: int = 128) -> Iterator[int]:
    """The random words of (seed, index) without end; `block` are made at a time."""
    start = 0
    while True:
        yield from draws(seed, index, start, block).tolist()
        start += block


# Numbers in words

_ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_GERMAN = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn "
    "vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn"
).split()
_GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
_MILLION = 10**6


@dataclass(frozen=True)
class NumberWords(Lazy):
    """Numbers below a million to translate: `source` in English, `target` in German.

    "two hundred forty-one" is "zweihunderteinundvierzig": short, exact, and the order
    of tens and ones turns round. Each number occurs once in the order of a seed; two
    sources with ranges of places that do not overlap share none.

    Attributes:
      num: how many examples.
      start: the place of the first in the order, below a million.
      seed: of the order.
    """

    num: int
    start: int = 0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.start <= self.start + self.num <= _MILLION:
            raise UserError(
                f"NumberWords has the places {self.start} to {self.start + self.num}, "
                "expected some of 0 to 1000000"
            )

    @cached_property
    def _numbers(self) -> Int64[np.ndarray, "num"]:
        places = np.arange(self.start, self.start + self.num)
        return permuted(places, _MILLION, self.seed)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        number = int(self._numbers[_within(index, self)])
        return {"source": english(number), "target": german(number)}


def english(number: int) -> str:
    """The words of a number below a million, without "and"."""
    thousands, rest = divmod(number, 1000)
    if thousands:
        low = f" {english(rest)}" if rest else ""
        return f"{english(thousands)} thousand{low}"
    hundreds, rest = divmod(number, 100)
    if hundreds:
        low = f" {english(rest)}" if rest else ""
        return f"{_ENGLISH[hundreds]} hundred{low}"
    if number < 20:
        return _ENGLISH[number]
    tens, ones = divmod(number, 10)
    return _ENGLISH_TENS[tens - 2] + (f"-{_ENGLISH[ones]}" if ones else "")


def german(number: int) -> str:
    """The word of a number below a million."""
    thousands, rest = divmod(number, 1000)
    if thousands:
        return f"{_joined(thousands)}tausend{german(rest) if rest else ''}"
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{_joined(hundreds)}hundert{german(rest) if rest else ''}"
    if number < 20:
        return _GERMAN[number]
    tens, ones = divmod(number, 10)
    return (f"{_joined(ones)}und" if ones else "") + _GERMAN_TENS[tens - 2]


def _joined(number: int) -> str:
    """The word before another: "eins" loses its s at the end."""
    word = german(number)
    return word.removesuffix("s") if number % 100 == 1 else word


def _within(index: int, source: Source) -> int:
    if not 0 <= index < len(source):
        raise IndexError(index)
    return index
