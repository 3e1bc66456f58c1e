"""Transforms of token sequences: parts of an example that are int32 (length,)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

from research.data.sources import Example, all_missing, prepare_all
from research.data.tokenizers import (
    BEGIN,
    END,
    NUM_SPECIAL,
    PAD,
    Tokenizer,
    as_text,
)
from research.errors import UserError


@dataclass(frozen=True)
class Tokenize:
    """The ids of a text, int32 (length,).

    Attributes:
      tokenizer: makes them.
      part: of the example, which is text.
      into: the name that the ids get; it may be the same.
      words: if not "", the part that says to which word each id belongs, counted from
        0, for `RandomMask`. Each word between spaces is then encoded by itself.
    """

    tokenizer: Tokenizer
    part: str = "text"
    into: str = "tokens"
    words: str = ""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its ids, and without the text."""
        text = as_text(example[self.part])
        rest = {name: value for name, value in example.items() if name != self.part}
        if not self.words:
            ids = np.array(self.tokenizer.encode(text), np.int32)
            return {**rest, self.into: ids}
        encoded = [self.tokenizer.encode(word) for word in text.split()]
        lengths = [len(ids) for ids in encoded]
        ids = np.array([i for ids in encoded for i in ids], np.int32)
        numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        return {**rest, self.into: ids, self.words: numbers}

    def missing(self) -> list[str]:
        """What is missing of the tokenizer."""
        return all_missing([self.tokenizer])

    def prepare(self) -> str:
        """Prepare the tokenizer, where it lives in files."""
        return prepare_all([self.tokenizer])


@dataclass(frozen=True)
class Truncate:
    """The first `length` elements of each part."""

    length: int
    parts: tuple[str, ...] = ("tokens",)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with shorter parts."""
        return example | {name: example[name][: self.length] for name in self.parts}


@dataclass(frozen=True)
class AppendEos:
    """One more id at the end of each part: the end of a sequence."""

    parts: tuple[str, ...] = ("tokens",)
    end: int = END

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with longer parts."""
        last = np.array([self.end], np.int32)
        return example | {n: np.concatenate([example[n], last]) for n in self.parts}


@dataclass(frozen=True)
class Prepend:
    """One more id at the beginning of each part, such as BERT's [CLS]."""

    id: int = BEGIN
    parts: tuple[str, ...] = ("tokens",)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with longer parts."""
        first = np.array([self.id], np.int32)
        return example | {n: np.concatenate([first, example[n]]) for n in self.parts}


@dataclass(frozen=True)
class PadTo:
    """`pad`, mostly 0, at the end of each part, up to `length` elements."""

    length: int
    parts: tuple[str, ...] = ("tokens",)
    pad: int = PAD

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with parts of one length; a longer one raises UserError."""
        return example | {
            n: padded(example[n], self.length, n, self.pad) for n in self.parts
        }


def padded(values: np.ndarray, length: int, name: str, pad: int = PAD) -> np.ndarray:
    """`values`, then `pad` up to `length`; `name` is what UserError calls them."""
    if len(values) > length:
        raise UserError(
            f"PadTo({length}): {name!r} has {len(values)} elements already: put "
            f"Truncate({length}) before it, or leave such examples out with NoLonger"
        )
    return np.pad(values, (0, length - len(values)), constant_values=pad)


@dataclass(frozen=True)
class RandomMask:
    """BERT's masked language model: some tokens are hidden, and are to be found.

    `rate` of the tokens are chosen. Of these `mask_rate` become `mask`, `random_rate` a
    random token, and the others stay. `tokens` becomes what is left, `targets` holds
    what was there, and `weights`, float32, is 1 where a token was chosen.

    Source: J. Devlin et al. 2018, arXiv:1810.04805, section 3.1 and Appendix A.1.

    Attributes:
      mask: the id that hides a token.
      vocab_size: random tokens are drawn from `first` to below it.
      first: see there.
      keep: ids that are never chosen.
      words: if not "", the part that says to which word each token belongs (see
        `Tokenize`): whole words are chosen then, until `rate` of the tokens are.
    """

    mask: int
    vocab_size: int
    rate: float = 0.15
    mask_rate: float = 0.8
    random_rate: float = 0.1
    first: int = NUM_SPECIAL
    keep: tuple[int, ...] = (PAD, END, BEGIN)
    words: str = ""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with `tokens`, `targets` and `weights`, without the words."""
        tokens = example["tokens"]
        candidates = np.flatnonzero(~np.isin(tokens, self.keep))
        words = example[self.words][candidates] if self.words else candidates
        chosen = np.zeros(len(tokens), bool)
        chosen[candidates[self._choose(words, rng)]] = True
        draw = rng.random(len(tokens))
        random = rng.integers(self.first, self.vocab_size, len(tokens), np.int32)
        hidden = chosen & (draw < self.mask_rate)
        replaced = chosen & ~hidden & (draw < self.mask_rate + self.random_rate)
        left = np.where(hidden, np.int32(self.mask), np.where(replaced, random, tokens))
        rest = {name: value for name, value in example.items() if name != self.words}
        weights = chosen.astype(np.float32)
        return {**rest, "tokens": left, "targets": tokens, "weights": weights}

    def _choose(
        self, words: np.ndarray, rng: np.random.Generator
    ) -> Bool[np.ndarray, "candidates"]:
        """Which of the candidates, given the word that each belongs to."""
        number = max(1, round(self.rate * len(words)))
        _, place, sizes = np.unique(words, return_inverse=True, return_counts=True)
        order = rng.permutation(len(sizes))
        # A word that would exceed the number is passed over, as in the official code.
        taken, total = np.zeros(len(sizes), bool), 0
        for word in order:
            if total + sizes[word] <= number:
                taken[word], total = True, total + sizes[word]
        return taken[place]


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective: spans of `tokens` are cut out, and are to be written.

    In `source` each span is replaced by a sentinel, in `target` all that lies between
    the spans is: the sentinels are `first_sentinel`, the id below it, and so on. Spans
    make up `rate` of the tokens and are `mean_length` long on average; the first token
    is never in one. Neither has an end yet: see `AppendEos`.

    Source: C. Raffel et al. 2019, arXiv:1910.10683, section 3.1.4; `random_spans_
    noise_mask` in t5/data/preprocessors.py of google-research/text-to-text-transfer-
    transformer.

    Attributes:
      first_sentinel: T5's is 32099, the last of its 32100 ids.
    """

    first_sentinel: int
    rate: float = 0.15
    mean_length: float = 3.0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with `source` and `target` in place of `tokens`."""
        tokens = example["tokens"]
        if len(tokens) < 2:
            raise UserError(
                f"SpanCorruption: an example has {len(tokens)} tokens, expected at "
                "least 2: leave them out, or train on Windows"
            )
        noise = self._mask(len(tokens), rng)
        rest = {name: value for name, value in example.items() if name != "tokens"}
        source, target = self._replace(tokens, noise), self._replace(tokens, ~noise)
        return {**rest, "source": source, "target": target}

    def _mask(
        self, length: int, rng: np.random.Generator
    ) -> Bool[np.ndarray, "length"]:
        """Which tokens are cut out: as many spans as gaps, a gap at the beginning."""
        num_noise, num_spans = _noise(length, self.rate, self.mean_length)
        gaps = _composition(length - num_noise, num_spans, rng)
        spans = _composition(num_noise, num_spans, rng)
        lengths = np.stack([gaps, spans], axis=1).reshape(-1)
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)

    def _replace(
        self, tokens: Int32[np.ndarray, "length"], noise: Bool[np.ndarray, "length"]
    ) -> Int32[np.ndarray, "shorter"]:
        """One sentinel in the place of each run of noise."""
        starts = noise & ~np.concatenate([[False], noise[:-1]])
        sentinels = self.first_sentinel + 1 - np.cumsum(starts)
        marked = np.where(starts, sentinels, tokens).astype(np.int32)
        return marked[starts | ~noise]


def span_corruption_lengths(
    inputs_length: int, rate: float = 0.15, mean_length: float = 3.0
) -> tuple[int, int]:
    """How many tokens fill a `source` of `inputs_length`, and how long `target` is.

    Both counts of the result's sides include one end of sequence. T5's own: 568 tokens
    give a source of 512 and a target of 114.
    """

    def lengths(num_tokens: int) -> tuple[int, int]:
        num_noise, num_spans = _noise(num_tokens, rate, mean_length)
        return num_tokens - num_noise + num_spans + 1, num_noise + num_spans + 1

    num_tokens = inputs_length
    while lengths(num_tokens + 1)[0] <= inputs_length:
        num_tokens += 1
    return num_tokens, lengths(num_tokens)[1]


def _noise(length: int, rate: float, mean_length: float) -> tuple[int, int]:
    """The number of tokens to cut out, and of spans."""
    num_noise = min(max(round(length * rate), 1), length - 1)
    num_spans = max(round(num_noise / mean_length), 1)
    return num_noise, min(num_spans, length - num_noise)


def _composition(total: int, num_parts: int, rng: np.random.Generator) -> np.ndarray:
    """Positive numbers that add up to `total`, every such list equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: num_parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


# Of images, and of pairs


@dataclass(frozen=True)
class PixelTokens:
    """An image row by row: `tokens`, int32 (height * width,), of its grey levels.

    Colours are weighed as ITU-R BT.601 has it, rounded down. As 0 is padding, a level
    is a token that many after the special ones.
    """

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its tokens, and without the image."""
        image = example["image"].astype(np.float64)
        if image.shape[-1] == 3:
            image = image @ np.array([0.2989, 0.587, 0.114])
        levels = image.reshape(-1).astype(np.int32)
        rest = {name: value for name, value in example.items() if name != "image"}
        return {**rest, "tokens": NUM_SPECIAL + levels}


@dataclass(frozen=True)
class ValueTokens:
    """An image row by row, pixel by pixel, and of each its channels: `tokens`, int32.

    As many as height * width * channels. As 0 is padding, a value is a token that many
    after the special ones.
    """

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its tokens, and without the image."""
        values = example["image"].reshape(-1).astype(np.int32)
        rest = {name: value for name, value in example.items() if name != "image"}
        return {**rest, "tokens": NUM_SPECIAL + values}


@dataclass(frozen=True)
class Join:
    """Parts one behind the other, as `into`."""

    parts: tuple[str, ...]
    into: str = "tokens"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with the joined part in the place of the others."""
        rest = {n: value for n, value in example.items() if n not in self.parts}
        return {**rest, self.into: np.concatenate([example[n] for n in self.parts])}
