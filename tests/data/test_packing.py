"""Rows for sequence models, made of the sequences of other sources."""

import pickle

import numpy as np
import pytest

from research.data.packing import (
    Chained,
    NoLonger,
    Packed,
    Transformed,
    Windows,
    _in_pieces,
)
from research.data.sequences import AppendEos, RandomMask, Tokenize, Truncate
from research.data.sources import Preparable
from research.data.text import Lines, ParallelText, TextFile
from research.data.tokenizers import Bytes, Characters, Words
from research.errors import UserError
from tests.data import texts


def lines(lengths) -> list[dict]:
    """Lines of the given lengths, each of a letter of its own."""
    return [{"text": chr(0x100 + i) * n} for i, n in enumerate(lengths)]


LENGTHS = np.random.default_rng(0).integers(1, 40, 300).tolist()
LETTERS = Characters("".join(chr(0x100 + i) for i in range(300)))
SEQUENCES = Transformed(tuple(lines(LENGTHS)), (Tokenize(LETTERS), AppendEos()))


def rows_of(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


# Transformed


def test_transforms_can_belong_to_the_source(tmp_path):
    texts.parallel(tmp_path)
    pairs = ParallelText(str(tmp_path))
    tokenizer = Words(pairs, 20, ("source",))
    source = Transformed(pairs, (Tokenize(tokenizer, "source"), Truncate(3)))
    assert isinstance(source, Preparable) and source.missing() == []
    assert source.prepare() == f"pairs of lines; {len(tokenizer.words)} words"
    assert len(source) == 5
    assert source[1]["tokens"].tolist() == tokenizer.encode("Two dogs run")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["tokens"], source[1]["tokens"])
    (tmp_path / "train.en").unlink()
    assert again.missing() == [str(tmp_path / "train.en.gz")]


def test_what_draws_in_a_source_draws_the_same_at_every_call():
    masked = Transformed(SEQUENCES, (RandomMask(mask=999, vocab_size=999, rate=0.5),))
    one, again = (masked[7]["weights"] for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert len({masked[i]["weights"].tobytes() for i in range(50)}) > 25


def test_longer_examples_can_be_left_out():
    source = NoLonger(SEQUENCES, 20)
    assert len(source) == sum(n + 1 <= 20 for n in LENGTHS)
    kept = [SEQUENCES[i]["tokens"] for i, n in enumerate(LENGTHS) if n < 20]
    for row, expected in zip(rows_of(source), kept, strict=True):
        np.testing.assert_array_equal(row["tokens"], expected)
    assert source.prepare() == f"{len(source)} of 300 of at most 20"
    pairs = [{"source": [1] * 3, "target": [1] * n} for n in (1, 4, 3)]
    assert len(NoLonger(pairs, 3, ("source", "target"))) == 2


def test_sources_follow_each_other(tmp_path):
    first, second = (Transformed(({"n": n},), ()) for n in (5, 6))
    source = Chained((first, ({"n": 7}, {"n": 8}), (), second))
    assert [row["n"] for row in rows_of(source)] == [5, 7, 8, 6]
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            source[outside]
    absent = str(tmp_path / "absent.txt")
    lines = Chained((Lines(absent), first, Lines(absent)))
    assert isinstance(lines, Preparable) and lines.missing() == [absent]
    (tmp_path / "absent.txt").write_text("here")
    assert lines.prepare() == "lines" and len(pickle.loads(pickle.dumps(lines))) == 3


# Windows


def test_windows_are_the_text_in_order():
    text = "".join(map(chr, range(32, 127))) * 3
    source = Windows(({"text": text},), Bytes(), 20)
    rows = rows_of(source)
    assert len(rows) == len(text) // 20
    assert {(row["tokens"].dtype, row["tokens"].shape) for row in rows} == {
        (np.dtype(np.int32), (20,))
    }
    whole = np.concatenate([row["tokens"] for row in rows])
    assert Bytes().decode(whole) == text[: len(rows) * 20]
    with pytest.raises(IndexError):
        source[len(rows) + 1]


@pytest.mark.parametrize("length", [1, 19, 20, 21, 38, 39, 40, 58])
@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_every_token_is_in_a_window(length, overlap):
    text = "".join(chr(0x100 + i) for i in range(length))
    rows = rows_of(Windows(({"text": text},), LETTERS, 20, overlap, keep_rest=True))
    said = [row["tokens"][overlap if i else 0 :] for i, row in enumerate(rows)]
    whole = np.concatenate(said) if said else np.zeros(0)
    # Shorter than the overlap of two rows, a text fills none.
    expected = list(range(4, 4 + length)) if length > overlap else []
    assert whole[whole > 0].tolist() == expected
    assert not whole[len(expected) :].any()
    for one, after in zip(rows, rows[1:], strict=False):
        np.testing.assert_array_equal(
            one["tokens"][20 - overlap :], after["tokens"][:overlap]
        )
    dropped = Windows(({"text": text},), LETTERS, 20, overlap)
    full = [row for row in rows if row["tokens"].all()]
    assert len(dropped) == len(full)
    for one, other in zip(rows_of(dropped), full, strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])


def test_texts_end_where_there_are_several():
    source = Windows(({"text": "ab"}, {"text": "\u00e4"}), Bytes(), 3)
    assert [row["tokens"].tolist() for row in rows_of(source)] == [
        [4 + ord("a"), 4 + ord("b"), 1],
        [4 + 0xC3, 4 + 0xA4, 1],
    ]


def test_long_texts_are_tokenized_in_pieces(tmp_path):
    text = "0123456789abcde\n" * 70_000 + "end"  # two pieces
    (tmp_path / "a.txt").write_text(text)
    source = Windows(TextFile(str(tmp_path / "a.txt")), Bytes(), 1000, keep_rest=True)
    assert source.prepare() == f"{len(text)} characters; {len(text)} tokens"
    whole = np.concatenate([row["tokens"] for row in rows_of(source)])
    assert Bytes().decode(whole) == text
    assert source._tokens.nbytes == 2 * len(text)
    fresh = pickle.dumps(Windows(source.source, Bytes(), 1000, keep_rest=True))
    assert pickle.dumps(source) == fresh


def test_texts_without_lines_are_cut_between_words(tmp_path):
    words = [f"w{number % 977}" for number in range(500_000)]
    text = " ".join(words)  # three pieces
    source = Windows(({"text": text},), Bytes(), 1000, keep_rest=True)
    assert Bytes().decode(source._tokens.astype(int)) == text
    pieces = list(_in_pieces(text))
    assert len(pieces) == 3 and "".join(pieces) == text
    assert [word for piece in pieces for word in piece.split()] == words


def test_windows_that_cannot_be_are_refused(tmp_path):
    for overlap in (-1, 20):
        with pytest.raises(UserError, match="Windows.overlap=.*less than length=20"):
            Windows(SEQUENCES, Bytes(), 20, overlap)
    absent = str(tmp_path / "absent.txt")
    source = Windows(Lines(absent), Words(Lines(absent), 9), 20)
    assert source.missing() == [absent]


# Packed


@pytest.fixture(scope="module")
def packed() -> Packed:
    return Packed(SEQUENCES, 64)


def test_packed_rows_hold_every_sequence_once_and_whole(packed):
    seen = []
    for row in rows_of(packed):
        assert {(part.dtype, part.shape) for part in row.values()} == {
            (np.dtype(np.int32), (64,))
        }
        assert set(row) == {"tokens", "segments", "positions"}
        tokens, segments, positions = row.values()
        count = segments.max()
        assert count >= 1
        # Segments 1, 2, ... follow each other, then padding only.
        used = segments > 0
        assert not used[np.argmin(used) :].any() or used.all()
        steps = np.diff(segments[used])
        assert set(steps.tolist()) <= {0, 1} and segments[0] == 1
        assert not tokens[~used].any() and not positions[~used].any()
        for segment in range(1, count + 1):
            place = segments == segment
            # One letter and one end: no segment mixes two sequences.
            *letters, end = tokens[place].tolist()
            assert end == 1 and len(set(letters)) == 1
            np.testing.assert_array_equal(positions[place], np.arange(place.sum()))
            seen.append((letters[0] - 4, len(letters)))
    assert sorted(seen) == list(enumerate(LENGTHS))


def test_the_fill_rate_is_that_of_the_rows(packed):
    filled = np.mean([row["segments"] > 0 for row in rows_of(packed)])
    assert packed.fill_rate == pytest.approx(filled, rel=1e-12)
    assert filled > 0.94
    assert packed.prepare() == f"{len(packed)} rows, {filled:.1%} filled"
    # With one row open at a time, more is padding.
    assert Packed(SEQUENCES, 64, num_open=1).fill_rate < filled - 0.1


def test_packing_is_first_fit_over_the_open_rows():
    def plan(lengths, num_open):
        source = [{"tokens": np.ones(n, np.int32)} for n in lengths]
        return Packed(source, 10, num_open=num_open)._plan.rows

    assert plan([6, 5, 4, 5, 1, 10], 64) == [[0, 2], [1, 3], [4], [5]]
    assert plan([6, 5, 4, 5], 1) == [[0], [1, 2], [3]]
    # The fullest of two open rows makes way: the first, with 6 of 10.
    assert plan([6, 5, 7, 4, 5], 2) == [[0], [1, 3], [2], [4]]
    assert plan([10, 10], 64) == [[0], [1]]


def test_rows_can_hold_fewer_sequences_than_there_is_room_for():
    source = [{"tokens": np.full(n, 9, np.int32)} for n in (3, 4, 1, 2, 5)]
    plans = [Packed(source, 10, most=most)._plan.rows for most in (1, 2, 0)]
    assert plans == [
        [[0], [1], [2], [3], [4]],
        [[0, 1], [2, 3], [4]],
        [[0, 1, 2, 3], [4]],
    ]
    row = Packed(source, 10, most=1)[3]
    assert row["tokens"].tolist() == [9, 9] + [0] * 8
    assert row["segments"].tolist() == [1, 1] + [0] * 8


def test_pairs_are_packed_together():
    rng = np.random.default_rng(1)
    pairs = [
        {"source": np.full(a, 10 + i), "target": np.full(b, 10 + i)}
        for i, (a, b) in enumerate(rng.integers(1, 20, (100, 2)))
    ]
    packed = Packed(pairs, 32, ("source", "target"))
    names = [f"{p}{s}" for p in ("source", "target") for s in ("", "_segments")]
    seen = []
    for row in rows_of(packed):
        assert len(row) == 6 and row["target_positions"].shape == (32,)
        source, source_segments, target, target_segments = (row[n] for n in names)
        assert source_segments.max() == target_segments.max()
        for segment in range(1, source_segments.max() + 1):
            (one,) = set(source[source_segments == segment].tolist())
            (other,) = set(target[target_segments == segment].tolist())
            assert one == other
            sizes = (source == one).sum(), (target == other).sum()
            assert sizes == tuple(len(pairs[one - 10][n]) for n in ("source", "target"))
            seen.append(one - 10)
    assert sorted(seen) == list(range(100))
    used = sum(len(p["source"]) + len(p["target"]) for p in pairs)
    assert packed.fill_rate == pytest.approx(used / (64 * len(packed)), rel=1e-12)


def test_a_sequence_longer_than_a_row_is_told():
    with pytest.raises(UserError, match=r"example \d+ of Transf.*put Truncate\(16\)"):
        len(Packed(SEQUENCES, 16))
    assert len(Packed(NoLonger(SEQUENCES, 16), 16)) > 0


def test_a_packed_source_pickles_as_its_fields(packed):
    fresh = pickle.dumps(Packed(SEQUENCES, 64))
    row = packed[3]
    assert pickle.dumps(packed) == fresh
    again = pickle.loads(fresh)[3]
    assert all(np.array_equal(again[name], row[name]) for name in row)
