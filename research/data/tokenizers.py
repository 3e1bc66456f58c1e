"""Text to token ids and back.

A tokenizer is a frozen record: equal and hashed by its fields, what it reads is loaded
on first use, and pickled without it, so that a worker process loads its own copy. Its
`encode` adds no special ids: transforms do (`AppendEos` and `Prepend` in
`research.data.sequences`).

Those that read files of public layouts are in `research.data.subwords`.

The special ids of all that are made here: 0 pads, 1 ends a sequence, 2 is unknown
and 3 begins one; symbols follow from 4 on. Public checkpoints keep their own.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from research.data.sources import Lazy, Source, all_missing
from research.errors import UserError

Ids = Sequence[int] | Int[np.ndarray, "length"]
"""What a tokenizer decodes."""

PAD, END, UNKNOWN, BEGIN = 0, 1, 2, 3
NUM_SPECIAL = 4


@dataclass(frozen=True)
class Special:
    """The ids that stand for no text; None for those that a tokenizer lacks.

    Attributes:
      pad: fills rows up.
      end: of a sequence.
      unknown: what the vocabulary does not hold.
      begin: of a sequence, or of decoding.
      mask: what a masked language model is to fill in.
    """

    pad: int | None = PAD
    end: int | None = END
    unknown: int | None = UNKNOWN
    begin: int | None = BEGIN
    mask: int | None = None


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. One that lives in files is `Preparable`."""

    if TYPE_CHECKING:
        # Python 3.11's `isinstance` would evaluate these, and so read files.

        @property
        def vocab_size(self) -> int:
            """One more than the largest id."""
            ...

        @property
        def special(self) -> Special:
            """The ids that stand for no text."""
            ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special ones but `unknown` among them."""
        ...

    def decode(self, ids: Ids) -> str:
        """The text of ids; special ones but `unknown` stand for nothing.

        Raises:
          UserError: an id is not in the vocabulary.
        """
        ...


def texts(source: Source, parts: Sequence[str]) -> Iterator[str]:
    """The named parts of every example, in order."""
    for index in range(len(source)):
        example = source[index]
        for part in parts:
            if part not in example:
                raise UserError(
                    f"example {index} of {source!r:.200} has no {part!r}: it has "
                    f"{', '.join(example)}"
                )
            yield as_text(example[part])


def as_text(value: str | bytes) -> str:
    """Text as it is; UTF-8 bytes, as TFDS gives them, decoded."""
    return value.decode() if isinstance(value, bytes) else value


# Without a file


@dataclass(frozen=True)
class Bytes:
    """UTF-8, each byte an id; every text comes back as it was."""

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIAL + 256

    @property
    def special(self) -> Special:
        return Special()

    def encode(self, text: str) -> list[int]:
        data = text.encode(errors="surrogateescape")  # bytes of half a character
        return [NUM_SPECIAL + byte for byte in data]

    def decode(self, ids: Ids) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, as unknown ids do."""
        unknown = "\ufffd".encode()
        ordinary = [bytes([byte]) for byte in range(256)]
        table = (b"", b"", unknown, b"", *ordinary)
        return b"".join(_looked_up(ids, table)).decode(errors="replace")


@dataclass(frozen=True)
class Characters(Lazy):
    """The characters of `alphabet`, in its order; `alphabet_of` a source makes one."""

    alphabet: str

    def __post_init__(self):
        _distinct(self.alphabet, "Characters.alphabet")

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIAL + len(self.alphabet)

    @property
    def special(self) -> Special:
        return Special()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {c: NUM_SPECIAL + i for i, c in enumerate(self.alphabet)}

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids.get(character, UNKNOWN) for character in text]

    def decode(self, ids: Ids) -> str:
        """The text, U+FFFD where unknown."""
        return "".join(_looked_up(ids, ("", "", "\ufffd", "", *self.alphabet)))


def alphabet_of(
    source: Source, parts: Sequence[str] = ("text",), min_count: int = 1
) -> str:
    """The characters that a source holds at least `min_count` times, sorted."""
    counts = Counter[str]()
    for text in texts(source, parts):
        counts.update(text)
    return "".join(sorted(c for c, n in counts.items() if n >= min_count))


@dataclass(frozen=True)
class Symbols(Lazy):
    """Symbols between spaces, each an id, for tasks with a closed vocabulary.

    Attributes:
      symbols: in the order of their ids.
      ignored: those that are dropped, such as brackets that carry nothing.
    """

    symbols: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def __post_init__(self):
        _distinct((*self.symbols, *self.ignored), "Symbols")

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIAL + len(self.symbols)

    @property
    def special(self) -> Special:
        return Special()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: NUM_SPECIAL + i for i, symbol in enumerate(self.symbols)}

    def encode(self, text: str) -> list[int]:
        symbols = [s for s in text.split() if s not in self.ignored]
        return [self._ids.get(symbol, UNKNOWN) for symbol in symbols]

    def decode(self, ids: Ids) -> str:
        """The symbols, "<unk>" where unknown, with single spaces between them."""
        return _spaced(ids, self.symbols)


# From a corpus

# Numbers with their separators, words with their inner hyphens, what follows an
# apostrophe within a word, dots in a row; every other sign alone.
_PIECES = re.compile(
    r"\d+(?:[.,:]\d+)+|\w+(?:-\w+)*|(?<=\w)['\u2019]\w+|\.{2,}|[^\w\s]"
)


def word_pieces(text: str) -> list[str]:
    """Words and punctuation apart, nearly as the Moses tokenizer puts them for English.

    "Don't pay 1,500.50!" is Don 't pay 1,500.50 !
    """
    return _PIECES.findall(text)


@dataclass(frozen=True)
class Words(Lazy):
    """The most frequent words of a corpus, cut by `word_pieces`.

    Decoding gives the words with spaces between them: the text as tokenized.

    Attributes:
      corpus: whose text is counted. Words that are equally frequent are sorted.
      vocab_size: special ids included; a small corpus leaves the last ones unused.
      parts: of its examples.
      lowercase: whether case is lost.
      min_count: rarer words are unknown.
    """

    corpus: Source
    vocab_size: int
    parts: tuple[str, ...] = ("text",)
    lowercase: bool = True
    min_count: int = 1

    def __post_init__(self):
        if self.vocab_size <= NUM_SPECIAL:
            raise UserError(
                f"Words.vocab_size={self.vocab_size}: expected more than the "
                f"{NUM_SPECIAL} special ids"
            )

    @property
    def special(self) -> Special:
        return Special()

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Those that are known, in the order of their ids."""
        counts = Counter[str]()
        for text in texts(self.corpus, self.parts):
            counts.update(self._cut(text))
        frequent = (word for word, n in counts.items() if n >= self.min_count)
        ranked = sorted(frequent, key=lambda word: (-counts[word], word))
        return tuple(ranked[: self.vocab_size - NUM_SPECIAL])

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: NUM_SPECIAL + i for i, word in enumerate(self.words)}

    def _cut(self, text: str) -> list[str]:
        return word_pieces(text.lower() if self.lowercase else text)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, UNKNOWN) for word in self._cut(text)]

    def decode(self, ids: Ids) -> str:
        """The words, "<unk>" where unknown, with single spaces between them."""
        spare = self.vocab_size - NUM_SPECIAL - len(self.words)
        return _spaced(ids, self.words + ("<unk>",) * spare)

    def missing(self) -> list[str]:
        """What is missing of the corpus."""
        return all_missing([self.corpus])

    def prepare(self) -> str:
        """Count the corpus's words."""
        return f"{len(self.words)} words"


# Shared


def _distinct(symbols: Sequence[str], name: str) -> None:
    twice = [symbol for symbol, n in Counter(symbols).items() if n > 1]
    if twice or not symbols:
        told = f"{', '.join(map(repr, twice))} twice" if twice else "nothing"
        raise UserError(f"{name} has {told}: expected each symbol once")


def known_ids(ids: Ids, vocab_size: int) -> list[int]:
    """The ids as Python's integers; UserError for one beyond the vocabulary."""
    numbers = [int(i) for i in ids]
    for i in numbers:
        if not 0 <= i < vocab_size:
            raise UserError(
                f"id {i} is not in a vocabulary of {vocab_size}: the ids are another "
                "tokenizer's, or of a model with a larger vocab_size"
            )
    return numbers


def _looked_up(ids: Ids, table: Sequence[Any]) -> list[Any]:
    return [table[i] for i in known_ids(ids, len(table))]


def _spaced(ids: Ids, symbols: tuple[str, ...]) -> str:
    words = _looked_up(ids, ("", "", "<unk>", "", *symbols))
    return " ".join(word for word in words if word)
