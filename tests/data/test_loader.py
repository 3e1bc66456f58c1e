"""The stream is a function of (seed, step), whoever makes it."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from research.data.loader import Data
from research.data.sources import Digits
from research.data.transforms import RandomFlip
from research.errors import UserError


@dataclass(frozen=True)
class Counting:
    """`size` small images that say which one they are; some may be broken."""

    size: int
    broken: int | None = None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        if index == self.broken:
            raise UserError(f"image {index} is damaged")
        image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2) + np.uint8(index)
        return {"image": image, "label": index}


@dataclass(frozen=True)
class Noise:
    """Put the random generator's first draws into the example."""

    def __call__(self, example, rng):
        return {**example, "noise": rng.random(2)}


DATA = Data(
    train=Counting(10),
    eval={"test": Counting(7)},
    batch_size=4,
    transforms=(RandomFlip(), Noise()),
    seed=3,
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


# What the stream holds


def test_a_batch_is_stacked_numbers_of_32_bits():
    (batch,) = take(1, DATA.batches())
    described = {name: (v.dtype, v.shape) for name, v in batch.items()}
    assert described == {
        "image": (np.uint8, (4, 2, 3, 2)),
        "label": (np.int32, (4,)),
        "noise": (np.float32, (4, 2)),
    }
    assert DATA.shapes() == {
        "image": ((2, 3, 2), "uint8"),
        "label": ((), "int32"),
        "noise": ((2,), "float32"),
    }


def test_every_epoch_has_every_example_once_in_a_new_order():
    labels = np.concatenate([b["label"] for b in take(10, DATA.batches())])
    epochs = labels.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = take(10, replace(DATA, seed=4).batches())
    assert np.concatenate([b["label"] for b in other]).tolist() != labels.tolist()


def test_the_stream_goes_on_from_any_step():
    straight = take(12, DATA.batches())
    for step in range(11):  # an epoch is two and a half batches
        assert same(take(2, DATA.batches(step)), straight[step : step + 2])
    far = take(1, DATA.batches(10**9))
    assert same(far, take(1, DATA.batches(10**9)))


def test_processes_hold_disjoint_rows_that_make_the_whole():
    whole = take(6, DATA.batches())
    for num_processes in (1, 2, 4):
        rows = np.arange(4).reshape(num_processes, -1).tolist()
        parts = [take(6, DATA.batches(0, part)) for part in rows]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert same(joined, whole)
    interleaved = take(6, DATA.batches(0, (3, 1)))
    picked = [{name: v[[3, 1]] for name, v in batch.items()} for batch in whole]
    assert same(interleaved, picked)


def test_random_draws_belong_to_the_place_in_the_stream():
    # An example gets new draws in every epoch; no two places share theirs.
    noise = np.concatenate([b["noise"] for b in take(50, DATA.batches())])
    assert len(np.unique(noise)) == noise.size
    # What is drawn depends neither on the order nor on the other examples.
    one = replace(DATA, train=Counting(1))
    alone = np.concatenate([b["noise"] for b in take(50, one.batches())])
    np.testing.assert_array_equal(alone, noise)
    reseeded = take(50, replace(DATA, seed=4).batches())
    assert not np.isin(np.concatenate([b["noise"] for b in reseeded]), noise).any()


def test_a_set_smaller_than_a_batch_wraps_around():
    (batch,) = take(1, replace(DATA, train=Counting(3), batch_size=9).batches())
    assert np.bincount(batch["label"]).tolist() == [3, 3, 3]


def test_spec_selects_and_converts():
    spec = {"noise": ((2,), "float16"), "label": ((), "uint8")}
    (batch,) = take(1, replace(DATA, spec=spec).batches())
    assert {name: str(v.dtype) for name, v in batch.items()} == {
        "noise": "float16",
        "label": "uint8",
    }
    assert replace(DATA, spec=spec).shapes() == spec


# Evaluation


def test_evaluation_is_one_ordered_pass_with_a_mask():
    batches = list(DATA.eval_batches("test", 3))
    labels = np.stack([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, [[0, 1, 2], [3, 4, 5], [6, 6, 6]])
    mask = np.stack([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    assert mask.dtype == np.float32
    assert len(list(DATA.eval_batches("test", 7))) == 1
    np.testing.assert_array_equal(batches[0]["image"][1], Counting(7)[1]["image"])


def test_evaluation_rows_of_processes_make_the_whole():
    whole = list(DATA.eval_batches("test", 4))
    halves = [list(DATA.eval_batches("test", 4, rows)) for rows in ((0, 1), (2, 3))]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*halves, strict=True)
    ]
    assert same(joined, whole)


def test_evaluation_has_transforms_of_its_own():
    data = replace(DATA, eval_transforms=(Noise(),))
    once, again = (list(data.eval_batches("test", 4)) for _ in range(2))
    assert "noise" in once[0] and same(once, again)


# Who makes it


def stop_all_but(batches, process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    for _ in range(1000):
        next(batches)


@pytest.mark.timeout(120)
def test_workers_make_the_same_stream_and_their_death_is_told():
    data = replace(DATA, spec={"label": ((), "int32"), "noise": ((2,), "float32")})
    straight = take(13, data.batches(2))
    with closing(replace(data, num_workers=4).batches(2)) as batches:
        assert same(list(itertools.islice(batches, 13)), straight)
        victim = multiprocessing.active_children()[0]
        with pytest.raises(RuntimeError, match="terminated unexpectedly .* -9"):
            stop_all_but(batches, victim)
    assert not multiprocessing.active_children()


@pytest.mark.timeout(120)
def test_an_error_in_a_worker_is_raised_as_it_was():
    data = replace(DATA, eval={"test": Counting(9, broken=6)})
    expected = list(itertools.islice(data.eval_batches("test", 2), 3))
    for num_workers in (0, 1):
        batches = replace(data, num_workers=num_workers).eval_batches("test", 2)
        with closing(batches):
            assert same(list(itertools.islice(batches, 3)), expected)
            with pytest.raises(UserError, match="image 6 is damaged") as error:
                next(batches)
            assert "example 6 of Counting(" in str(error.value.__notes__)
    assert not multiprocessing.active_children()


def test_without_grain_a_thread_makes_the_same_stream(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.warns(UserWarning, match="num_workers=2 needs Grain .*pip install"):
        batches = replace(DATA, num_workers=2).batches()
    assert same(take(5, batches), take(5, DATA.batches()))


def test_read_ahead_changes_nothing_and_ends_with_the_iterator():
    straight = take(5, replace(DATA, prefetch=0).batches())
    for prefetch in (1, 2, 7):
        assert same(take(5, replace(DATA, prefetch=prefetch).batches()), straight)
    assert not [t for t in threading.enumerate() if t.name.startswith("data")]


def test_only_the_asked_number_of_batches_is_made_ahead():
    made = []

    class Watched(Counting):
        def __getitem__(self, index):
            made.append(index)
            return super().__getitem__(index)

    with closing(replace(DATA, train=Watched(10), prefetch=3).batches()) as batches:
        for taken in range(1, 6):
            next(batches)
            for _ in range(200):  # until the thread has caught up
                if len(made) == 4 * (taken + 3):
                    break
                threading.Event().wait(0.005)
            assert len(made) == 4 * (taken + 3)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_batches():
    big = [{"image": np.zeros((64, 64, 3), np.uint8)} for _ in range(8)]
    data = replace(DATA, train=big, batch_size=64, transforms=())  # 0.8 MB a batch
    with closing(data.batches()) as batches:
        for _ in range(50):
            next(batches)
        before = resident_bytes()
        for _ in range(300):
            next(batches)
        assert resident_bytes() - before < 20e6  # kept, they would take 236 MB


# What is refused


def test_examples_of_other_shapes_are_told_with_both():
    odd = [{"image": np.zeros((4, 4, 3), np.uint8)} for _ in range(5)]
    odd[3] = {"image": np.zeros((4, 5, 3), np.uint8)}
    data = replace(DATA, eval={"test": odd})
    message = (
        r"'image' of example 3 has shape \(4, 5, 3\), but \(4, 4, 3\) in example 0: "
        "bring all examples to one shape with transforms, such as Resize"
    )
    with pytest.raises(UserError, match=message):
        list(data.eval_batches("test", 5))
    spec = {"image": ((8, 8, 3), "uint8")}
    with pytest.raises(UserError, match=r"\(4, 4, 3\), but \(8, 8, 3\) in data.spec"):
        list(replace(data, spec=spec).eval_batches("test", 5))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"a": 1}, {"b": 1}], "example 1 has no 'a', unlike example 0: it has b"),
        ([{"a": "text"}, {"a": "text"}], "'a' is <U4, which no device holds: encode"),
        ([{"a": 1}, {"a": 2**40}], "'a' holds int64 values that are not int32"),
        ([{"a": 1}, {"a": 0.5}], "'a' holds float64 values that are not int32"),
        ([{"a": 1}, {"a": 2.0}], "'a' holds float64 values that are not int32"),
        ([{"mask": 1}, {"mask": 1}], "data.eval.test has a part named mask"),
        ([], "data.eval.test has no examples: check its folder and split"),
    ],
)
def test_examples_that_make_no_batch_are_told(examples, message):
    with pytest.raises(UserError, match=message):
        list(replace(DATA, eval={"test": examples}).eval_batches("test", 2))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"mask": ((), "uint8")}, "no 'mask', unlike data.spec: it has image, label"),
        ({"image": ((2, 3, 2), "bool")}, "holds uint8 values that are not bool"),
    ],
)
def test_examples_that_are_not_as_the_spec_says_are_told(spec, message):
    with pytest.raises(UserError, match=message):
        next(replace(DATA, spec=spec).batches())


def test_numbers_out_of_range_are_told():
    for name, value in {"batch_size": 0, "seed": -1, "num_workers": -1}.items():
        with pytest.raises(UserError, match=f"{name}={value}: expected at least"):
            replace(DATA, **{name: value})
    with pytest.raises(UserError, match="batch_size=0: expected at least 1"):
        DATA.eval_batches("test", 0)
    for rows in ((), (4,), (-1, 0)):
        with pytest.raises(ValueError, match="of a batch of 4"):
            DATA.batches(0, rows)


def test_an_unknown_evaluation_split_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no evaluation split 'val'.* has test"):
        DATA.eval_batches("val", 2)


def test_data_are_hashed_by_their_records():
    data = replace(DATA, train=Digits(), eval={"test": Digits("test")})
    same_data = replace(DATA, train=Digits(), eval={"test": Digits("test")})
    assert (data, hash(data)) == (same_data, hash(same_data))
    assert data != replace(data, eval={})
