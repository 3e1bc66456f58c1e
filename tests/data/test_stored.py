"""Sequences in files: what comes back, and when it is made anew."""

import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest

from research.data.buckets import BucketedData
from research.data.loader import Bucket
from research.data.packing import (
    Measured,
    NoLonger,
    Packed,
    Transformed,
    Windows,
    lengths_of,
)
from research.data.sequences import AppendEos, Tokenize
from research.data.sources import Preparable
from research.data.stored import Stored
from research.data.text import Lines
from research.data.tokenizers import Bytes
from research.errors import UserError
from tests.data import texts

PARTS = ("source", "target")


@dataclass(frozen=True)
class Pairs:
    """`num` pairs of sequences; counts what is read."""

    num: int = 50
    highest: int = 300
    read: list = field(default_factory=list, compare=False, repr=False)

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        if not 0 <= index < self.num:
            raise IndexError(index)
        self.read.append(index)
        rng = np.random.default_rng(index)
        return {
            name: rng.integers(0, self.highest, rng.integers(0, 9)).astype(np.int32)
            for name in PARTS
        }


def assert_same(one, other):
    assert len(one) == len(other)
    for index in range(len(other)):
        ours, theirs = one[index], other[index]
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            assert ours[name].dtype == np.int32
            np.testing.assert_array_equal(ours[name], values)


@pytest.mark.parametrize("highest", [300, 2**16, 2**16 + 1, 2**31 - 1])
def test_what_is_stored_comes_back(tmp_path, highest):
    source = Pairs(highest=highest)
    # The widest number there is comes late, after others have been written.
    last = {"source": np.array([highest - 1]), "target": np.array([-1])[:0]}
    examples = tuple(source[i] for i in range(50)) + (last,)
    stored = Stored(examples, str(tmp_path / "new" / "pairs"))
    assert isinstance(stored, Preparable)
    assert stored.missing() == [str(tmp_path / "new" / "pairs")]
    with pytest.raises(UserError, match="no .*pairs: python -m launch.prepare"):
        len(stored)
    assert stored.prepare() == "51 stored"
    assert stored.missing() == []
    assert_same(stored, [{n: np.int32(v) for n, v in e.items()} for e in examples])
    width = 2 if highest <= 2**16 else 4
    size = sum(len(e["source"]) for e in examples)
    values = tmp_path / "new" / "pairs" / "source.values"
    assert values.stat().st_size == width * size
    assert len(list((tmp_path / "new").iterdir())) == 1  # nothing half made is left
    with pytest.raises(IndexError):
        stored[51]


def test_nothing_is_made_twice(tmp_path):
    source = Pairs()
    stored = Stored(source, str(tmp_path / "pairs"))
    stored.prepare()
    source.read.clear()
    kept = NoLonger(stored, 6, PARTS)
    packed = Packed(kept, 16, PARTS)
    rows = [packed[i] for i in range(len(packed))]
    assert not source.read
    # Without files once for its length, and once more where it stands in a row.
    plain = Packed(NoLonger(source, 6, PARTS), 16, PARTS)
    assert len(plain) == len(rows) and sorted(source.read) == list(range(50))
    for index, row in enumerate(rows):
        for name, values in plain[index].items():
            np.testing.assert_array_equal(row[name], values)
    again = pickle.loads(pickle.dumps(stored))
    assert_same(again, source)


def test_lengths_are_those_of_what_is_there(tmp_path):
    source = Pairs()
    stored = Stored(source, str(tmp_path / "pairs"))
    stored.prepare()
    some = NoLonger(stored, 5, ("target",))
    for measured in (stored, some):
        assert isinstance(measured, Measured)
        for parts in (PARTS, ("target",), PARTS[::-1]):
            expected = [
                [len(measured[i][name]) for name in parts] for i in range(len(measured))
            ]
            assert lengths_of(measured, parts).tolist() == expected
    assert 0 < len(some) < 50


def test_buckets_ask_for_lengths_only(tmp_path):
    source = Pairs()
    kept = NoLonger(source, 6, PARTS)

    def spec(length, other):
        return {"source": ((length,), "int32"), "target": ((other,), "int32")}

    def data(train):
        smaller = (Bucket(4, spec(4, 2)), Bucket(4, spec(2, 4)), Bucket(4, spec(5, 5)))
        return BucketedData(
            train=train, batch_size=2, spec=spec(6, 6), smaller=smaller, seed=1
        )

    found = data(kept).schedule.members
    assert sorted(source.read) == list(range(50))  # each once
    expected = data([kept[i] for i in range(len(kept))]).schedule.members
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(map(len, found))
    with pytest.raises(UserError, match=r"example \d+ .*\(7,\).* no bucket holds them"):
        _ = data(NoLonger(source, 7, PARTS)).schedule


def test_rows_that_are_ready_are_stored_too(tmp_path):
    texts.write(tmp_path / "lines.txt", texts.ENGLISH)
    lines = Lines(str(tmp_path / "lines.txt"))
    encoded = Transformed(lines, (Tokenize(Bytes()), AppendEos()))
    for name, rows in {
        "packed": Packed(encoded, 64),
        "windows": Windows(lines, Bytes(), 10, overlap=1),
    }.items():
        stored = Stored(rows, str(tmp_path / name))
        assert stored.prepare().endswith(f"{len(rows)} stored")
        assert_same(stored, rows)
    (tmp_path / "lines.txt").unlink()
    fresh = Stored(Windows(lines, Bytes(), 10, overlap=1), str(tmp_path / "windows"))
    assert fresh.missing() == [] and fresh[0]["tokens"].shape == (10,)
    assert fresh.prepare() == f"{len(fresh)} stored"


def test_what_was_made_from_something_else_is_told(tmp_path):
    path = str(tmp_path / "pairs")
    Stored(Pairs(), path).prepare()
    with pytest.raises(
        UserError, match="made from 'Pairs.num=50.*not from 'Pairs.num=49"
    ):
        len(Stored(Pairs(49), path))

    @dataclass(frozen=True)
    class Changed(Pairs):
        """The same settings, and another content."""

        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {name: values + (index == 49) for name, values in example.items()}

        def __repr__(self):
            return repr(Pairs())

    with pytest.raises(UserError, match="example 49 in .*is not that of .* any more"):
        Stored(Changed(), path).prepare()
    (tmp_path / "pairs" / "target.values").write_bytes(b"x")
    with pytest.raises(UserError, match="target.values has 1 bytes, expected .* anew"):
        Stored(Pairs(), path)[0]
    (tmp_path / "pairs" / "stored.json").write_text("{")
    with pytest.raises(UserError, match="stored.json cannot be read"):
        len(Stored(Pairs(), path))


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ({"tokens": np.zeros(3)}, "'tokens' of example 1 .* is float64 of shape .3,."),
        ({"tokens": np.zeros((1, 1), int)}, r"of shape \(1, 1\): only whole numbers"),
        ({"label": np.zeros(1, int)}, "has label, but the first one tokens"),
    ],
)
def test_what_cannot_be_stored_is_told(tmp_path, example, told):
    source = ({"tokens": np.zeros(2, int)}, example)
    with pytest.raises(UserError, match=told):
        Stored(source, str(tmp_path / "one")).prepare()
    assert not list(tmp_path.iterdir())
