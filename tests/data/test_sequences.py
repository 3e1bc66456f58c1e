"""Transforms of token sequences."""

import numpy as np
import pytest

from research.data.sequences import (
    AppendEos,
    PadTo,
    Prepend,
    RandomMask,
    SpanCorruption,
    Tokenize,
    Truncate,
    ValueTokens,
    span_corruption_lengths,
)
from research.data.sources import Preparable
from research.data.text import Lines
from research.data.tokenizers import Bytes, Characters, Symbols, Words
from research.errors import UserError


def apply(transform, example: dict, seed: int = 0) -> dict:
    """The transformed example; the given one may not change."""
    before = {n: np.array(v) for n, v in example.items()}
    result = transform(example, np.random.default_rng(seed))
    for name, value in before.items():
        np.testing.assert_array_equal(example[name], value)
    return result


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def same(example: dict, **expected) -> bool:
    """Whether the example has these parts, of these types, and no others."""
    return example.keys() == expected.keys() and all(
        np.array_equal(example[name], value)
        and np.asarray(example[name]).dtype == np.asarray(value).dtype
        for name, value in expected.items()
    )


def test_tokenize_puts_ids_in_the_place_of_text():
    example = {"text": "ab", "label": np.int32(3)}
    result = apply(Tokenize(Characters("ab")), example)
    assert same(result, label=np.int32(3), tokens=ids(4, 5))
    pair = {"source": b"a", "target": "b"}  # bytes are what TFDS gives
    result = apply(Tokenize(Characters("ab"), "source", "source"), pair)
    assert same(result, source=ids(4), target=np.array("b"))
    assert same(apply(Tokenize(Bytes()), {"text": ""}), tokens=ids())


def test_tokenize_can_say_which_word_a_token_belongs_to():
    result = apply(Tokenize(Characters("abc"), words="words"), {"text": " abc a  bc"})
    assert same(result, tokens=ids(4, 5, 6, 4, 5, 6), words=ids(0, 0, 0, 1, 2, 2))
    empty = apply(Tokenize(Bytes(), words="words"), {"text": " "})
    assert same(empty, tokens=ids(), words=ids())


def test_what_a_tokenizer_lacks_its_transform_lacks(tmp_path):
    transform = Tokenize(Words(Lines(str(tmp_path / "a.txt")), 10))
    assert isinstance(transform, Preparable)
    assert transform.missing() == [str(tmp_path / "a.txt")]
    (tmp_path / "a.txt").write_text("b c b\n")
    assert transform.missing() == [] and transform.prepare() == "2 words"
    assert Tokenize(Bytes()).missing() == [] and Tokenize(Bytes()).prepare() == ""


def test_ids_are_added_and_cut_off():
    pair = {"source": ids(5, 6, 7), "target": ids(8)}
    both = ("source", "target")
    result = apply(AppendEos(both), pair)
    assert same(result, source=ids(5, 6, 7, 1), target=ids(8, 1))
    assert same(apply(Truncate(2, both), pair), source=ids(5, 6), target=ids(8))
    assert same(apply(Prepend(9, ("target",)), pair), **pair | {"target": ids(9, 8)})
    result = apply(PadTo(3, both), pair)
    assert same(result, source=ids(5, 6, 7), target=ids(8, 0, 0))
    weights = {"weights": np.ones(2, np.float32)}
    padded = apply(PadTo(3, ("weights",)), weights)
    assert same(padded, weights=np.array([1, 1, 0], np.float32))
    other = apply(PadTo(3, ("target",), pad=9), pair)["target"]
    assert other.tolist() == [8, 9, 9]
    message = r"PadTo\(2\): 'source' has 3 elements already: put Truncate\(2\)"
    with pytest.raises(UserError, match=message):
        apply(PadTo(2, both), pair)


# Masked language models

LONG = {"tokens": np.arange(4, 20_004, dtype=np.int32), "label": 1}


def test_masking_follows_its_rates():
    mask = RandomMask(mask=30_000, vocab_size=30_000)
    result = apply(mask, LONG)
    tokens, targets, weights = (result[n] for n in ("tokens", "targets", "weights"))
    assert result["label"] == 1 and len(result) == 4
    np.testing.assert_array_equal(targets, LONG["tokens"])
    assert weights.dtype == np.float32 and tokens.dtype == np.int32
    chosen = weights == 1
    assert chosen.sum() == weights.sum() == 3000
    assert np.array_equal(tokens[~chosen], targets[~chosen])
    hidden, kept = tokens == 30_000, chosen & (tokens == targets)
    assert not (hidden & ~chosen).any()
    # Four standard deviations.
    assert abs(hidden.sum() - 2400) < 4 * np.sqrt(3000 * 0.8 * 0.2)
    assert abs(kept.sum() - 300) < 4 * np.sqrt(3000 * 0.1 * 0.9)
    random = tokens[chosen & ~hidden & ~kept]
    assert 4 <= random.min() < 200 and 29_800 < random.max() < 30_000
    assert len(np.unique(random)) > 0.95 * len(random)


def test_masking_draws_anew_for_each_generator():
    mask = RandomMask(mask=30_000, vocab_size=30_000)
    one, again, other = (apply(mask, LONG, seed)["weights"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    both = np.sum(one * other)  # 15 % of 15 %
    assert 350 < both < 550


def test_special_ids_are_never_masked():
    tokens = ids(3, 0, 1, *range(4, 14), 1, 0, 0)
    mask = RandomMask(mask=20, vocab_size=20, rate=1.0, mask_rate=1.0, random_rate=0.0)
    result = apply(mask, {"tokens": tokens})
    assert result["tokens"].tolist() == [3, 0, 1, *[20] * 10, 1, 0, 0]
    assert result["weights"].sum() == 10
    bert = RandomMask(mask=103, vocab_size=30522, rate=1.0, keep=(0, 101, 102))
    result = apply(bert, {"tokens": ids(101, 7, 8, 102, 0)})
    np.testing.assert_array_equal(result["weights"], [0, 1, 1, 0, 0])
    nothing = apply(mask, {"tokens": ids(0, 0)})
    np.testing.assert_array_equal(nothing["weights"], [0, 0])
    one = RandomMask(mask=20, vocab_size=20)
    assert apply(one, {"tokens": ids(4, 5)})["weights"].sum() == 1  # at least one


def test_whole_words_are_masked_together():
    lengths = np.random.default_rng(0).integers(1, 6, 400)
    words = np.repeat(np.arange(400, dtype=np.int32), lengths)
    tokens = np.arange(4, 4 + len(words), dtype=np.int32)
    mask = RandomMask(mask=9999, vocab_size=9999, words="words")
    framed = apply(AppendEos(("tokens", "words")), {"tokens": tokens, "words": words})
    result = apply(mask, framed)
    assert set(result) == {"tokens", "targets", "weights"}
    weights = result["weights"][:-1]
    assert result["weights"][-1] == 0
    for word in range(400):
        assert len(np.unique(weights[words == word])) == 1
    # The last of the tokens to choose may be fewer than any word left has.
    assert round(0.15 * len(words)) - 5 < weights.sum() <= round(0.15 * len(words))


# Spans


def test_t5s_lengths_are_the_published_ones():
    assert span_corruption_lengths(512) == (568, 114)


@pytest.mark.parametrize("length", [2, 3, 7, 20, 111, 568])
@pytest.mark.parametrize(("rate", "mean_length"), [(0.15, 3.0), (0.5, 1.0)])
def test_spans_can_be_put_back(length, rate, mean_length):
    corrupt = SpanCorruption(999, rate, mean_length)
    tokens = np.arange(4, 4 + length, dtype=np.int32)
    for seed in range(20):
        result = apply(corrupt, {"tokens": tokens, "label": 7}, seed)
        source, target = result["source"], result["target"]
        assert result["label"] == 7 and "tokens" not in result
        assert source.dtype == target.dtype == np.int32
        sentinels = source[source > 600]
        np.testing.assert_array_equal(sentinels, 999 - np.arange(len(sentinels)))
        np.testing.assert_array_equal(target[target > 600], sentinels)
        assert source[0] == 4 and target[0] == 999
        # A span stands behind its sentinel in the target.
        spans = np.split(target, np.flatnonzero(target > 600))[1:]
        assert all(len(span) > 1 for span in spans)
        whole = [
            part
            for token in source
            for part in (spans[999 - token][1:] if token > 600 else [token])
        ]
        np.testing.assert_array_equal(whole, tokens)
        assert sum(len(span) - 1 for span in spans) == max(1, round(length * rate))


def test_spans_are_as_long_and_as_many_as_asked():
    tokens, targets = span_corruption_lengths(512)
    corrupt = SpanCorruption(32099)
    ends = AppendEos(("source", "target"))
    starts = np.zeros(tokens)
    for seed in range(300):
        example = {"tokens": np.arange(4, 4 + tokens, dtype=np.int32)}
        result = apply(ends, apply(corrupt, example, seed))
        assert (len(result["source"]), len(result["target"])) == (512, targets)
        cut = ~np.isin(example["tokens"], result["source"])
        starts += cut & ~np.roll(cut, 1)
    # 28 spans a row, anywhere but at the first place.
    assert starts.sum() == 300 * 28 and starts[0] == 0
    halves = starts[: tokens // 2].sum(), starts[tokens // 2 :].sum()
    assert abs(halves[0] - halves[1]) < 4 * np.sqrt(300 * 28)


def test_the_sentinels_are_those_of_t5():
    result = apply(SpanCorruption(32099), {"tokens": ids(*range(100, 120))})
    assert 32099 in result["source"] and result["source"].max() == 32099


def test_too_short_a_sequence_has_no_spans():
    with pytest.raises(UserError, match="an example has 1 tokens, expected at least 2"):
        apply(SpanCorruption(99), {"tokens": ids(4)})


def test_masked_words_come_from_text():
    """The way from a line to a masked row, in one piece."""
    tokenizer = Symbols(("the", "cat", "sat"))
    steps = (
        Tokenize(tokenizer, words="words"),
        Truncate(6, ("tokens", "words")),
        Prepend(3, ("tokens", "words")),
        RandomMask(mask=7, vocab_size=7, words="words"),
        PadTo(8, ("tokens", "targets", "weights")),
    )
    example: dict = {"text": "the cat sat the cat sat the"}
    for step in steps:
        example = apply(step, example)
    assert example["targets"].tolist() == [3, 4, 5, 6, 4, 5, 6, 0]
    assert {len(part) for part in example.values()} == {8}
    assert example["weights"].sum() == 1


def test_values_of_an_image_are_tokens_in_order():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    result = apply(ValueTokens(), {"image": image, "label": 3})
    tokens = (4 + 10 * np.arange(24)).astype(np.int32)
    assert same(result, tokens=tokens, label=3)
