"""Batches of images of several sizes: who stands where depends on (seed, step)."""

import itertools
import pickle
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pytest

from research.data.detection import (
    CleanObjects,
    CropObjects,
    FlipObjects,
    OneOf,
    ResizeObjects,
    ToTargets,
    targets_spec,
)
from research.data.groups import GroupedData
from research.data.loader import make_example
from research.data.permutation import permuted
from research.data.transforms import Pad
from research.errors import UserError


@dataclass(frozen=True)
class Pictures:
    """`num` images of several sizes, each filled with its own number."""

    num: int
    sizes: tuple = ((12, 16), (16, 12), (10, 20), (14, 14))

    names = {0: "thing"}

    def __len__(self):
        return self.num

    def _parts(self, index):
        return {
            "image_id": np.int32(index),
            "boxes": np.array([[1, 1, 9, 9]] * (index % 3), np.float32).reshape(-1, 4),
            "classes": np.zeros(index % 3, np.int32),
            "crowd": np.zeros(index % 3, bool),
        }

    def __getitem__(self, index):
        size = self.sizes[index % len(self.sizes)]
        return {"image": np.full((*size, 3), 1 + index, np.uint8), **self._parts(index)}

    def annotation(self, index):
        size = np.array(self.sizes[index % len(self.sizes)], np.int32)
        return {**self._parts(index), "size": size}


SCALE = ResizeObjects((10, 13, 16), 24)
DATA = GroupedData(
    train=Pictures(53),
    eval={"test": Pictures(21)},
    batch_size=4,
    spec=targets_spec((26, 26), 3),
    smaller=((12, 16), (16, 12), (16, 24), (24, 16)),
    window=8,
    transforms=(
        CleanObjects(),
        FlipObjects(),
        OneOf(((SCALE,), (CropObjects(8, 11), SCALE))),
        ToTargets(3),
    ),
    eval_transforms=(CleanObjects(), ResizeObjects((12,), 20), ToTargets(3)),
    seed=5,
)
STEPS = 24


def take(number: int, batches) -> list[dict[str, np.ndarray]]:
    with closing(batches):
        return list(itertools.islice(batches, number))


def told(batches) -> list:
    return [
        {name: (v.dtype, v.shape, v.tobytes()) for name, v in batch.items()}
        for batch in batches
    ]


@pytest.fixture(scope="module")
def batches() -> list[dict[str, np.ndarray]]:
    return take(STEPS, DATA.batches())


def test_the_stream_is_that_of_plain_data_in_another_order(batches):
    """Every window has the examples, and the draws, of its places in the stream."""
    made, found = [], []
    positions = np.arange(STEPS * 4)
    indices = permuted(positions, 53, 5)
    for index, position in zip(indices.tolist(), positions.tolist(), strict=True):
        example = make_example(DATA, DATA.train, DATA.transforms, index, position)
        made.append((position // 32, index, example["image"].tobytes()))
    for step, batch in enumerate(batches):
        rows = zip(batch["image"], batch["size"], batch["image_id"], strict=True)
        for image, (height, width), number in rows:
            inside = image[:height, :width]
            found.append((step // 8, int(number), inside.tobytes()))
            assert image.sum() == inside.astype(int).sum() > 0
    assert sorted(found) == sorted(made)
    ids = [n for b in batches for n in b["image_id"].tolist()]
    assert len(set(ids)) == 53


def test_batches_have_the_shapes_of_the_buckets(batches):
    shapes = Counter(batch["image"].shape[1:3] for batch in batches)
    sizes = [bucket.spec["image"][0][:2] for bucket in DATA.buckets()]
    assert sizes == [*DATA.smaller, (26, 26)] and set(shapes) <= set(sizes)
    assert len(shapes) >= 4 and shapes[26, 26] <= 6
    specs = [bucket.spec for bucket in DATA.buckets()]
    for batch in batches:
        assert {part.shape[0] for part in batch.values()} == {4}
        found = {name: (v.shape[1:], v.dtype.name) for name, v in batch.items()}
        assert found in specs
    orders = [[b["image"].shape for b in batches[i : i + 8]] for i in (0, 8, 16)]
    assert len({str(order) for order in orders}) == 3
    assert any(order != sorted(order) for order in orders)


def test_segments_are_as_large_as_the_image():
    data = replace(DATA, spec=targets_spec((26, 26), 3, segments=True))
    for bucket in data.buckets():
        assert bucket.spec["segments"][0] == bucket.spec["image"][0][:2]
        assert bucket.spec["boxes"][0] == (3, 4) and bucket.batch_size == 4


def test_the_stream_goes_on_from_any_step(batches):
    for step in (0, 1, 7, 8, 21):
        assert told(take(3, DATA.batches(step))) == told(batches[step : step + 3])
        assert told([DATA.batch(step)]) == told(batches[step : step + 1])
    again = pickle.loads(pickle.dumps(DATA))
    assert again == DATA and told([again.batch(9)]) == told(batches[9:10])
    far = take(1, DATA.batches(10**9))
    assert told(far) == told(take(1, replace(DATA, prefetch=0).batches(10**9)))
    other = take(8, replace(DATA, seed=6).batches())
    assert told(other) != told(batches[:8])


def test_processes_hold_disjoint_rows_that_make_the_whole(batches):
    parts = [take(STEPS, DATA.batches(0, {4: rows})) for rows in ([0, 1], [2, 3])]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert told(joined) == told(batches)


@pytest.mark.timeout(120)
def test_workers_make_the_same_stream(batches):
    made = take(6, replace(DATA, num_workers=2).batches(3))
    assert told(made) == told(batches[3:9])


def test_the_evaluation_sees_each_example_once():
    batches = take(99, DATA.eval_batches("test", 4))
    assert len(batches) == 6  # of 21 examples
    real = [b["mask"] > 0 for b in batches]
    ids = np.concatenate([b["image_id"][m] for b, m in zip(batches, real, strict=True)])
    assert sorted(ids.tolist()) == list(range(21))
    assert sum(m.sum() for m in real) == 21
    shapes = {b["image"].shape[1:3] for b in batches}
    assert len(shapes) > 2 and (12, 16) in shapes
    for batch in batches:
        number, size = batch["image_id"][0], batch["size"][0]
        assert (batch["image"][0, : size[0], : size[1]] == 1 + number).all()
    halves = [take(99, DATA.eval_batches("test", 4, rows)) for rows in ([0, 1], [2, 3])]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*halves, strict=True)
    ]
    assert told(joined) == told(batches)
    with pytest.raises(UserError, match="no evaluation split 'val'"):
        DATA.eval_batches("val", 4)


def test_what_is_left_over_joins_the_next_larger():
    test = Pictures(4, sizes=((12, 16), (12, 16), (12, 16), (16, 24)))
    plain = (CleanObjects(), ToTargets(3))
    data = replace(DATA, eval={"test": test}, eval_transforms=plain)
    (batch,) = take(9, data.eval_batches("test", 4))
    assert batch["image"].shape == (4, 16, 24, 3)
    assert batch["size"].tolist() == [[12, 16]] * 3 + [[16, 24]]


def test_padding_is_what_the_batches_have(batches):
    share, shapes = DATA.padding(num_windows=3)
    filled = sum(int(b["size"].prod(axis=1).sum()) for b in batches)
    total = sum(int(np.prod(b["image"].shape[:3])) for b in batches)
    assert share == pytest.approx(1 - filled / total)
    counts = Counter(b["image"].shape[1:3] for b in batches)
    assert shapes == {s: counts[s] / STEPS for s in (*DATA.smaller, (26, 26))}
    first, *_, last = (f"{h}x{w} {part:.1%}" for (h, w), part in shapes.items())
    told = DATA.summary(num_windows=3)
    assert told.startswith(f"batches of 5 sizes ({first}, ")
    assert told.endswith(f"{last}); {share:.1%} of their pixels are padding")
    # One bucket for all has more of it.
    assert replace(DATA, smaller=()).padding(3)[0] > share + 0.2


def test_more_batches_together_need_less_padding():
    shares = [replace(DATA, window=n).padding(64 // n)[0] for n in (1, 8, 64)]
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spec": {}}, "needs data.spec with the largest image"),
        ({"window": 0}, "window=0: expected at least 1"),
        ({"smaller": ((27, 8),)}, r"smaller.0 holds .*\(27, 8\), which data.spec does"),
        ({"smaller": ((16, 16), (8, 16))}, r"\(16, 16\), as much as the later \(8, 16"),
        ({"smaller": ((26, 26),)}, r"\(26, 26\), as much as the later \(26, 26\)"),
        (
            {"transforms": (Pad(32),)},
            r"data.transforms has Pad\(size=32\), whose result",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        replace(DATA, **settings)


def test_images_that_fit_into_no_bucket_are_told():
    data = replace(
        DATA,
        train=Pictures(9, sizes=((8, 40),)),
        transforms=(CleanObjects(), ToTargets(3)),
    )
    with pytest.raises(
        UserError, match="8x40 after the transforms fits into no bucket"
    ):
        data.batch(0)
