"""Batches of several shapes: who stands where is a function of (seed, step)."""

import itertools
import pickle
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pytest

from research.data.buckets import BucketedData, Schedule, length_buckets
from research.data.loader import Bucket, Data
from research.data.sequences import AppendEos
from research.errors import UserError


@dataclass(frozen=True)
class Sequences:
    """`num` sequences of 1 to `longest` of their own number, and their number."""

    num: int
    longest: int = 15

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        length = 1 + index * 7919 % self.longest
        return {"tokens": np.full(length, 4 + index, np.int32), "number": index}


@dataclass(frozen=True)
class Draw:
    """Put the random generator's first draw into the example."""

    def __call__(self, example, rng):
        return {**example, "draw": rng.random()}


def spec(length: int) -> dict:
    return {
        "tokens": ((length,), "int32"),
        "number": ((), "int32"),
        "draw": ((), "float32"),
    }


DATA = BucketedData(
    train=Sequences(103),
    eval={"test": Sequences(10)},
    batch_size=4,
    spec=spec(16),
    smaller=(Bucket(16, spec(4)), Bucket(8, spec(8))),
    transforms=(AppendEos(), Draw()),
    eval_transforms=(AppendEos(), Draw()),
    seed=5,
)


def take(number: int, batches) -> list[dict[str, np.ndarray]]:
    with closing(batches):
        return list(itertools.islice(batches, number))


def same(one: list, other: list) -> bool:
    """Whether lists of batches are byte for byte alike."""

    def told(batches):
        return [
            {name: (v.dtype, v.shape, v.tobytes()) for name, v in batch.items()}
            for batch in batches
        ]

    return told(one) == told(other)


@pytest.fixture(scope="module")
def epochs() -> list[list[dict[str, np.ndarray]]]:
    """The batches of three epochs."""
    number = DATA.schedule.num_batches
    batches = take(3 * number, DATA.batches())
    return [batches[i * number : (i + 1) * number] for i in range(3)]


# The contract of the stream


def test_every_epoch_has_every_example_once_but_a_few(epochs):
    lost = []
    for epoch in epochs:
        numbers = Counter(n for batch in epoch for n in batch["number"].tolist())
        assert set(numbers.values()) == {1}
        lost.append(set(range(103)) - set(numbers))
        assert len(lost[-1]) == DATA.schedule.num_lost < 4
    assert DATA.schedule.num_lost == 3
    assert len(set.union(*lost)) > 3  # others in every epoch
    orders = [[b["number"].tolist() for b in epoch] for epoch in epochs]
    assert len({str(order) for order in orders}) == 3
    kinds = [[len(b["number"]) for b in epoch] for epoch in epochs]
    assert len({str(kind) for kind in kinds}) == 3
    assert {str(sorted(kind)) for kind in kinds} == {str(sorted(kinds[0]))}


def test_batches_have_the_shapes_of_the_buckets(epochs):
    shapes = {batch["tokens"].shape for epoch in epochs for batch in epoch}
    assert shapes == {(16, 4), (8, 8), (4, 16)}
    assert [bucket.batch_size for bucket in DATA.buckets()] == [16, 8, 4]
    for batch in itertools.chain.from_iterable(epochs):
        for number, row in zip(batch["number"], batch["tokens"], strict=True):
            length = 1 + number * 7919 % 15
            expected = [4 + number] * length + [1]
            assert row.tolist() == expected + [0] * (len(row) - length - 1)


def test_an_example_stands_in_the_first_bucket_that_holds_it(epochs):
    """But for those that are left over there, fewer than a batch."""
    larger = Counter()
    for batch in epochs[0]:
        width = batch["tokens"].shape[1]
        for length in (batch["tokens"] > 0).sum(axis=1):
            first = next(w for w in (4, 8, 16) if w >= length)
            assert first <= width
            larger[first] += first < width
    lengths = np.array([2 + i * 7919 % 15 for i in range(103)])
    few, more = int((lengths <= 4).sum()), int((lengths <= 8).sum())
    left = few % 16, (more - few + few % 16) % 8
    assert left[0] and left[1]
    # What joins the last bucket may be left over there again, and be lost.
    assert left[0] - 3 <= larger[4] <= left[0]
    assert sum(left) - 3 - left[0] <= larger[4] + larger[8] <= sum(left)


def test_the_stream_goes_on_from_any_step(epochs):
    straight = list(itertools.chain.from_iterable(epochs))
    for step in (0, 1, 7, len(epochs[0]) - 1, len(epochs[0]), len(straight) - 3):
        assert same(take(3, DATA.batches(step)), straight[step : step + 3])
        assert same([DATA.batch(step)], straight[step : step + 1])
    far = take(1, DATA.batches(10**9))
    assert same(far, take(1, replace(DATA, prefetch=0).batches(10**9)))


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_hold_disjoint_rows_that_make_the_whole(epochs, num_processes):
    straight = epochs[0]
    parts = []
    for process in range(num_processes):
        rows = {
            size: np.arange(size).reshape(num_processes, -1)[process].tolist()
            for size in (16, 8, 4)
        }
        parts.append(take(len(straight), DATA.batches(0, rows)))
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert same(joined, straight)


@pytest.mark.timeout(120)
def test_workers_make_the_same_stream(epochs):
    straight = list(itertools.chain.from_iterable(epochs))
    made = take(7, replace(DATA, num_workers=2).batches(3))
    assert same(made, straight[3:10])


def test_random_draws_belong_to_the_place_in_the_stream(epochs):
    draws = np.concatenate([b["draw"] for epoch in epochs for b in epoch])
    assert len(np.unique(draws)) == len(draws)


def test_seeds_have_orders_of_their_own(epochs):
    other = take(len(epochs[0]), replace(DATA, seed=6).batches())
    shapes = [[b["tokens"].shape for b in batches] for batches in (epochs[0], other)]
    assert shapes[0] != shapes[1] and sorted(shapes[0]) == sorted(shapes[1])


def test_the_order_is_fixed_for_ever():
    # Runs are resumed under later versions: these numbers may not change.
    buckets = (Bucket(2, spec(4)), Bucket(1, spec(8)))
    schedule = Schedule(buckets, (np.arange(5), np.arange(5, 8)), 1)
    told = [schedule.batch(step)[1].tolist() for step in range(6)]
    assert told == [[6], [2, 1], [5], [3], [7], [0, 4]]


# Schedules of many kinds


@pytest.mark.parametrize("seed", range(4))
def test_schedules_lose_nothing_else(seed):
    """Any numbers, any batch sizes, and images that are higher or wider."""
    rng = np.random.default_rng(seed)

    def image(height, width):
        return {"image": ((height, width, 3), "uint8")}

    sizes = rng.integers(2, 9, 4)
    shapes = ((2, 4), (4, 2), (4, 4), (8, 8))
    buckets = tuple(
        Bucket(int(size), image(*shape))
        for size, shape in zip(sizes, shapes, strict=True)
    )
    counts = [*rng.integers(0, 25, 3), int(rng.integers(sizes[3], 25))]
    numbers = np.split(rng.permutation(sum(counts)), np.cumsum(counts)[:-1])
    schedule = Schedule(buckets, tuple(numbers), seed)
    first = np.zeros(sum(counts), int)
    for bucket, members in enumerate(numbers):
        first[members] = bucket
    held_by = {0: {0, 2, 3}, 1: {1, 2, 3}, 2: {2, 3}, 3: {3}}
    for epoch in range(2):
        seen = []
        for step in range(schedule.num_batches):
            bucket, examples = schedule.batch(epoch * schedule.num_batches + step)
            assert len(examples) == bucket.batch_size
            place = buckets.index(bucket)
            assert all(place in held_by[first[i]] for i in examples)
            seen += examples.tolist()
        assert len(seen) == len(set(seen)) == sum(counts) - schedule.num_lost
    assert schedule.num_lost < sizes[3]
    full = sum(counts) - schedule.num_lost
    assert str(schedule).endswith(
        f"= {schedule.num_batches} batches, without {sum(counts) - full} of "
        f"{sum(counts)} examples"
    )


def test_one_bucket_is_a_schedule_too():
    data = replace(DATA, smaller=())
    batches = take(2 * data.schedule.num_batches, data.batches())
    assert {b["tokens"].shape for b in batches} == {(4, 16)}
    assert data.schedule.num_batches == 25


# Evaluation, and other uses


def test_evaluation_takes_the_largest_bucket():
    batches = list(DATA.eval_batches("test", 4))
    assert [b["tokens"].shape for b in batches] == [(4, 16)] * 3
    assert np.concatenate([b["number"] for b in batches]).tolist() == [*range(10), 9, 9]
    row = batches[0]["tokens"][1]  # 1 + 7919 % 15 = 15 tokens and the end
    assert row.tolist() == [5] * 15 + [1]
    assert batches[0]["tokens"][0].tolist() == [4, 1] + [0] * 14


def test_plain_data_have_one_bucket_and_fill_nothing():
    number = {"number": ((), "int32")}
    plain = Data(train=Sequences(9, longest=1), batch_size=4, spec=number)
    assert plain.buckets() == (Bucket(4, number),)
    assert same([plain.batch(3, [1])], take(1, plain.batches(3, {4: [1]})))
    short = replace(plain, spec={"tokens": ((2,), "int32")})
    with pytest.raises(UserError, match=r"has shape \(1,\), but \(2,\) in data.spec"):
        short.batch(0)


def test_examples_are_measured_once(monkeypatch):
    read = []

    class Watched(Sequences):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    data = replace(DATA, train=Watched(103))
    data.batch(0)
    first = len(read)
    assert first <= 103 + 16
    data.batch(1)
    take(1, replace(data, prefetch=0).batches())
    again = pickle.loads(pickle.dumps(DATA))
    assert again == DATA and same([again.batch(3)], [DATA.batch(3)])
    assert len(read) - first <= 103 + 2 * 16


def test_buckets_of_like_numbers_of_tokens():
    *smaller, largest = length_buckets((16, 32, 60), 1024, ("source", "target"))
    assert [b.batch_size for b in smaller] == [64, 32] and largest.batch_size == 16
    assert largest.spec == {n: ((60,), "int32") for n in ("source", "target")}
    assert str(largest) == "16 rows of source 60, target 60"
    with pytest.raises(UserError, match="64 tokens has no 8 rows of 60: .* least 480"):
        length_buckets((8, 60), 64)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spec": {}}, "buckets need data.spec"),
        ({"smaller": (Bucket(0, spec(4)),)}, "smaller.0.batch_size=0: expected at"),
        (
            {"smaller": (Bucket(4, {"tokens": ((4,), "int32")}),)},
            "smaller.0 has the parts {'tokens': 'int32'}, but data.spec",
        ),
        (
            {"smaller": (Bucket(4, spec(17)),)},
            "holds 4 rows .* 17, which data.spec does",
        ),
        (
            {"smaller": (Bucket(4, spec(16)),)},
            "smaller.0 holds .*, as much as data.spec",
        ),
        (
            {"smaller": (Bucket(4, spec(8)), Bucket(8, spec(4)))},
            "smaller.1 holds 8 rows of tokens 4, as an earlier one does, .*: sort them",
        ),
    ],
)
def test_buckets_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        replace(DATA, **settings)


def test_examples_that_no_bucket_takes_are_told():
    with pytest.raises(UserError, match="example 1 of data.train .*no bucket holds"):
        replace(DATA, train=Sequences(9, longest=16)).batch(0)
    with pytest.raises(UserError, match="examples fit only into the largest batches"):
        replace(DATA, train=Sequences(30), batch_size=64).batch(0)
    few = replace(DATA, train=Sequences(3, longest=3))
    with pytest.raises(UserError, match="3 examples do not make one batch: choose sm"):
        few.batch(0)
    with pytest.raises(UserError, match="has shape .* but .* in data.spec"):
        take(20, replace(DATA, transforms=(Longer(),)).batches())


@dataclass(frozen=True)
class Longer:
    """A length that depends on the draw."""

    def __call__(self, example, rng):
        return {**example, "tokens": np.ones(rng.integers(1, 17), np.int32), "draw": 0}
