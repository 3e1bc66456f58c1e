"""Rows for sequence models: sources made of the sequences of other sources."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from research.data.sequences import padded
from research.data.sources import Example, Lazy, Source, all_missing, prepare_all
from research.data.tokenizers import Tokenizer, texts
from research.data.transforms import Transform
from research.errors import UserError


@dataclass(frozen=True)
class Transformed(Lazy):
    """A source's examples after transforms, such as `Tokenize`, that draw nothing.

    What draws, such as `RandomMask`, belongs into `Data.transforms`: here it would draw
    the same in every epoch.
    """

    source: Source
    transforms: tuple[Transform, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        rng = np.random.Generator(np.random.Philox(key=index))
        for transform in self.transforms:
            example = transform(example, rng)
        return example

    def missing(self) -> list[str]:
        """What is missing of the source and the transforms."""
        return all_missing([self.source, *self.transforms])

    def prepare(self) -> str:
        """Prepare the source, then the transforms."""
        return prepare_all([self.source, *self.transforms])


@dataclass(frozen=True)
class Chained(Lazy):
    """The examples of several sources, those of one after those of another."""

    sources: tuple[Source, ...]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[place - 1]) if place else 0
        return self.sources[place][index - start]

    def missing(self) -> list[str]:
        """What is missing of any of them."""
        return all_missing(self.sources)

    def prepare(self) -> str:
        """Prepare them all."""
        return prepare_all(self.sources)


@runtime_checkable
class Measured(Protocol):
    """A source that knows how long its sequences are without making them again."""

    def lengths(self, parts: Sequence[str]) -> Int32[np.ndarray, "examples parts"]:
        """Elements of each of the parts of each example."""
        ...


def lengths_of(
    source: Source, parts: Sequence[str]
) -> Int32[np.ndarray, "examples parts"]:
    """Elements of each of the parts of each example, all of which may have to be read.

    What takes long to make is best kept: `research.data.stored`.
    """
    return (
        source.lengths(parts) if isinstance(source, Measured) else _read(source, parts)
    )


def _read(source: Source, parts: Sequence[str]) -> Int32[np.ndarray, "examples parts"]:
    lengths = np.zeros((len(source), len(parts)), np.int32)
    for index, row in enumerate(lengths):
        example = source[index]
        row[:] = [len(example[name]) for name in parts]
    return lengths


@dataclass(frozen=True)
class NoLonger(Lazy):
    """The examples of `source` that have at most `length` elements in each of `parts`.

    All are measured once, when the first is asked for.
    """

    source: Source
    length: int
    parts: tuple[str, ...] = ("tokens",)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return lengths_of(self.source, self.parts)

    @cached_property
    def _kept(self) -> np.ndarray:
        return np.flatnonzero((self._lengths <= self.length).all(axis=1))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self._kept[index])]

    def lengths(self, parts: Sequence[str]) -> Int32[np.ndarray, "examples parts"]:
        """Of what is kept, as it was measured."""
        if not set(parts) <= set(self.parts):
            return _read(self, parts)
        return self._lengths[self._kept][:, [self.parts.index(n) for n in parts]]

    def missing(self) -> list[str]:
        """What is missing of the source."""
        return all_missing([self.source])

    def prepare(self) -> str:
        """Prepare the source; count what is kept."""
        told = prepare_all([self.source])
        kept = f"{len(self)} of {len(self.source)} of at most {self.length}"
        return f"{told}; {kept}" if told else kept


@dataclass(frozen=True)
class Windows(Lazy):
    """One long sequence cut into rows of equal length: `tokens`, int32 (length,).

    The texts of a source follow each other in its order, an end of sequence after each
    where there are several. All are tokenized when the first row is asked for, and kept
    in memory, 2 bytes a token where the vocabulary allows.

    Attributes:
      source: of texts, such as `TextFile`.
      tokenizer: one that can be applied to lines, and to words of long ones, by
        themselves, as all here can.
      length: of the rows.
      overlap: tokens that a row shares with the one before it. With 1, where a model
        learns to say each token but the first, every token is learnt once.
      part: the text's name in the source's examples.
      keep_rest: whether what fills no row makes a last one, filled up with padding.
    """

    source: Source
    tokenizer: Tokenizer
    length: int
    overlap: int = 0
    part: str = "text"
    keep_rest: bool = False

    def __post_init__(self):
        if not 0 <= self.overlap < self.length:
            raise UserError(
                f"Windows.overlap={self.overlap}: expected at least 0 and less than "
                f"length={self.length}"
            )

    @cached_property
    def _tokens(self) -> np.ndarray:
        small = self.tokenizer.vocab_size <= 2**16
        dtype = np.uint16 if small else np.int32
        end = self.tokenizer.special.end if len(self.source) > 1 else None
        pieces = []
        for text in texts(self.source, (self.part,)):
            for lines in _in_pieces(text):
                pieces.append(np.array(self.tokenizer.encode(lines), dtype))
            if end is not None:
                pieces.append(np.array([end], dtype))
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype)

    def __len__(self) -> int:
        stride = self.length - self.overlap
        beyond = max(len(self._tokens) - self.overlap, 0)
        return -(-beyond // stride) if self.keep_rest else beyond // stride

    def __getitem__(self, index: int) -> Example:
        start = index * (self.length - self.overlap)
        row = self._tokens[start : start + self.length].astype(np.int32)
        if not len(row):
            raise IndexError(index)
        return {"tokens": padded(row, self.length, "tokens")}

    def missing(self) -> list[str]:
        """What is missing of the source and the tokenizer."""
        return all_missing([self.source, self.tokenizer])

    def prepare(self) -> str:
        """Prepare the source and the tokenizer; tokenize all."""
        told = prepare_all([self.source, self.tokenizer])
        count = f"{len(self._tokens)} tokens"
        return f"{told}; {count}" if told else count


def _in_pieces(text: str, size: int = 2**20) -> Iterator[str]:
    """Whole lines, about `size` characters at a time, so that few ids are lists.

    Whole words, where a line is longer: a piece may begin with a space.
    """
    start = 0
    while start < len(text):
        wanted = start + size
        end = text.find("\n", wanted, wanted + size) + 1 or text.find(" ", wanted)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end


@dataclass(frozen=True)
class Packed(Lazy):
    """Rows that hold several sequences one after the other, so that little is padding.

    For each of `parts` a row has the sequences, int32 (length,), and of the same shape
    the `segments`: 1 for the first, 2 for the second, ..., 0 for padding; and the
    `positions` within each sequence. They are called `segments` and `positions` where
    there is one part, and `source_segments` and so on where there are several; what is
    one example has the same number in all of them.

    Each example, in the order of the source, goes into the first of the open rows that
    has room for it, else into a new one. All are measured for this plan, when the first
    row is asked for.

    Attributes:
      source: has the sequences, such as `Transformed(lines, (Tokenize(...),
        AppendEos()))`.
      length: of a row, for each of the parts if there are several.
      parts: to pack; others are left out.
      num_open: rows that are kept open; the fullest is closed for a new one.
      most: sequences in a row; 1 is for the source's examples, each padded, in order,
        and 0 for as many as there is room for.
    """

    source: Source
    length: int
    parts: tuple[str, ...] = ("tokens",)
    num_open: int = 64
    most: int = 0

    @cached_property
    def _plan(self) -> "_Plan":
        lengths = lengths_of(self.source, self.parts)
        longest = lengths.max(axis=1)
        for index in np.flatnonzero(longest > self.length)[:1]:
            raise UserError(
                f"example {index} of {self.source!r:.200} has {longest[index]} "
                f"elements, more than a row of Packed({self.length}): put "
                f"Truncate({self.length}) among its transforms, or NoLonger around it"
            )
        return _plan(lengths, self.length, self.num_open, self.most)

    @property
    def fill_rate(self) -> float:
        """The part of all rows that is not padding."""
        return self._plan.fill_rate

    def __len__(self) -> int:
        return len(self._plan.rows)

    def __getitem__(self, index: int) -> Example:
        examples = [self.source[i] for i in self._plan.rows[index]]
        row: Example = {}
        for name in self.parts:
            prefix = f"{name}_" if len(self.parts) > 1 else ""
            sequences = [np.asarray(example[name]) for example in examples]
            lengths = [len(sequence) for sequence in sequences]
            numbers = np.arange(1, len(lengths) + 1, dtype=np.int32)
            places = [np.arange(n, dtype=np.int32) for n in lengths]
            for label, values in {
                name: np.concatenate(sequences).astype(np.int32),
                f"{prefix}segments": np.repeat(numbers, lengths),
                f"{prefix}positions": np.concatenate(places),
            }.items():
                row[label] = padded(values, self.length, label)
        return row

    def missing(self) -> list[str]:
        """What is missing of the source."""
        return all_missing([self.source])

    def prepare(self) -> str:
        """Prepare the source; plan the rows."""
        told = prepare_all([self.source])
        rows = f"{len(self)} rows, {self.fill_rate:.1%} filled"
        return f"{told}; {rows}" if told else rows


@dataclass(frozen=True)
class _Plan:
    """Which examples each row holds, and the part of all rows that is not padding."""

    rows: list[list[int]]
    fill_rate: float


def _plan(
    lengths: Int32[np.ndarray, "examples parts"], length: int, num_open: int, most: int
) -> _Plan:
    rows: list[list[int]] = []
    open_rows = np.zeros(num_open, int)
    room = np.full((num_open, 1), -1)  # of rows that are not there yet
    num_parts = lengths.shape[1]
    for index, need in enumerate(lengths):
        fits = np.all(room >= need, axis=1)
        place = int(fits.argmax() if fits.any() else room.sum(axis=1).argmin())
        if not fits[place]:
            room = np.array(np.broadcast_to(room, (num_open, num_parts)))
            room[place], open_rows[place] = length, len(rows)
            rows.append([])
        rows[open_rows[place]].append(index)
        room[place] -= need
        if len(rows[open_rows[place]]) == most:
            room[place] = -1  # nothing fits any more
    total = int(lengths.sum(dtype=np.int64))
    return _Plan(rows, total / max(1, len(rows) * length * num_parts))
