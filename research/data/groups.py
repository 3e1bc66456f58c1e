"""Images of any size in batches of a few static shapes, each with as many rows.

A step is compiled for each shape. The size of an image may depend on random draws: it
is worked out from the size in the source by the transforms' own draws, without an image
being decoded, and so which images stand together in a batch is, as everywhere in the
training stream, a pure function of the seed and the step.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int64

from research.data.detection import Measurable, Size, annotations
from research.data.loader import (
    Batch,
    Bucket,
    Data,
    Rows,
    assemble,
    generator,
    rows_of,
)
from research.data.permutation import permuted
from research.data.sources import Source
from research.data.transforms import Transform
from research.errors import UserError


class _Group(NamedTuple):
    """One batch: the place of its bucket, and its examples' places in the stream."""

    bucket: int
    positions: Int64[np.ndarray, "rows"]


@dataclass(frozen=True, kw_only=True)
class GroupedData(Data):
    """Data whose batches have images of one of several sizes, and zeros beside them.

    The stream of examples with their draws is that of `Data`. Of each `window` batches
    of it the examples are put together by size: each goes into the first bucket that
    holds it after the transforms, and those that are left over there, fewer than a
    batch, join those of the first later bucket that holds them. So no example is lost
    or seen twice in an epoch, and batches of all shapes stand in a random order. All
    transforms have to be `Measurable`.

    The evaluation puts the examples of the whole split together in the same way: each
    once, but not in order, with `image_id` to tell which it is.

    `spec` is that of the largest bucket; in the others its parts that are as large as
    the image, such as `segments`, are as small.

    Attributes:
      smaller: heights and widths of the other buckets, from small to large.
      window: batches whose examples are put together. With more of them fewer examples
        join those of a larger bucket, but all their sizes are worked out for the first.
    """

    smaller: tuple[Size, ...]
    window: int = 64

    fills: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.window < 1:
            raise UserError(f"window={self.window}: expected at least 1")
        if len(self.spec.get("image", ((),))[0]) != 3:
            raise UserError(
                "GroupedData needs data.spec with the largest image, (height, width, 3)"
            )
        sizes = self._sizes
        for place, size in enumerate(sizes[:-1]):
            later = sizes[place + 1 :]
            if not _holds(sizes[-1], size):
                raise UserError(
                    f"data.smaller.{place} holds images of {size}, which data.spec "
                    f"does not: {sizes[-1]}"
                )
            for other in later:
                if _holds(size, other):
                    raise UserError(
                        f"data.smaller.{place} holds images of {size}, as much as the "
                        f"later {other}: sort them from small to large"
                    )
        for name in ("transforms", "eval_transforms"):
            for transform in getattr(self, name):
                if not isinstance(transform, Measurable):
                    raise UserError(
                        f"data.{name} has {transform!r:.80}, whose result has a size "
                        "that is not known without the image: expected transforms such "
                        "as those of research.data.detection"
                    )

    @property
    def _sizes(self) -> tuple[Size, ...]:
        height, width, *_ = self.spec["image"][0]
        return (*self.smaller, (height, width))

    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes that batches have, the largest last."""
        return tuple(Bucket(self.batch_size, self._spec(s)) for s in self._sizes)

    def _spec(self, size: Size) -> dict:
        whole = self._sizes[-1]
        return {
            name: (size + shape[2:] if shape[:2] == whole else shape, dtype)
            for name, (shape, dtype) in self.spec.items()
        }

    def padding(self, num_windows: int = 1) -> tuple[float, dict[Size, float]]:
        """How much of the training's batches is no image.

        Args:
          num_windows: at the beginning of the stream, over which it is worked out.

        Returns:
          The share of pixels that are beside the images, and of each bucket its share
          of the batches.
        """
        filled = total = 0
        batches: Counter[Size] = Counter()
        for window in range(num_windows):
            sizes, groups = self._measured(window), self._groups(window)
            filled += int(sizes.prod(axis=1).sum())
            for group in groups:
                size = self._sizes[group.bucket]
                batches[size] += 1
                total += self.batch_size * size[0] * size[1]
        shares = {s: batches[s] / batches.total() for s in self._sizes}
        return 1 - filled / total, shares

    def summary(self, num_windows: int = 1) -> str:
        """`padding` in a line."""
        share, sizes = self.padding(num_windows)
        told = ", ".join(f"{h}x{w} {part:.1%}" for (h, w), part in sizes.items())
        return (
            f"batches of {len(sizes)} sizes ({told}); {share:.1%} of their pixels are "
            "padding"
        )

    def _measured(self, window: int) -> Int64[np.ndarray, "examples 2"]:
        """The sizes of the training images of one window, after the transforms."""
        positions = self._positions(window)
        indices = permuted(positions, len(self.train), self.seed)
        return _measure(self, self.train, self.transforms, indices, positions)

    def _positions(self, window: int) -> Int64[np.ndarray, "examples"]:
        number = self.window * self.batch_size
        return window * number + np.arange(number)

    def _groups(self, window: int) -> list[_Group]:
        """The batches of one window, in their order."""
        if window not in self._known:
            self._known.clear()
            groups = self._grouped(
                self._measured(window), self._positions(window), self.batch_size
            )
            steps = window * self.window + np.arange(self.window)
            order = permuted(steps, self.window, self.seed)
            self._known[window] = [groups[i] for i in order]
        return self._known[window]

    @cached_property
    def _known(self) -> dict[int, list[_Group]]:
        """The groups of the window that was asked for last."""
        return {}

    def _grouped(
        self,
        measured: Int64[np.ndarray, "examples 2"],
        positions: Int64[np.ndarray, "examples"],
        batch_size: int,
    ) -> list[_Group]:
        sizes = self._sizes
        waiting: list[list[int]] = [[] for _ in sizes]
        for position, size in zip(positions.tolist(), measured.tolist(), strict=True):
            waiting[_first(sizes, size)].append(position)
        groups = []
        for bucket, members in enumerate(waiting):
            last = bucket == len(sizes) - 1
            members.sort()
            stop = len(members) if last else len(members) // batch_size * batch_size
            for start in range(0, stop, batch_size):
                group = members[start : start + batch_size]
                groups.append(_Group(bucket, np.array(group, np.int64)))
            if not last:
                later = sizes[bucket + 1 :]
                parent = bucket + 1 + _first(later, sizes[bucket])
                waiting[parent] += members[stop:]
        return groups

    def _stream(self, start_step: int, rows: Rows | None) -> "_GroupedStream":
        return _GroupedStream(self, start_step, rows_of(rows, self.batch_size))

    def _eval_stream(
        self, split: str, batch_size: int, rows: np.ndarray
    ) -> "_GroupedEvalStream":
        source = self.eval[split]
        indices = np.arange(len(source))
        measured = _measure(self, source, self.eval_transforms, indices, indices)
        groups = self._grouped(measured, indices, batch_size)
        return _GroupedEvalStream(self, split, batch_size, rows, tuple(groups))


@dataclass(frozen=True)
class _GroupedStream:
    """Batches by number, counted from `start_step`."""

    data: GroupedData
    start_step: int
    rows: np.ndarray

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        data = self.data
        window, number = divmod(self.start_step + index, data.window)
        group = data._groups(window)[number]
        positions = group.positions[self.rows]
        indices = permuted(positions, len(data.train), data.seed)
        spec = data._spec(data._sizes[group.bucket])
        return assemble(data, data.train, data.transforms, indices, positions, spec)


@dataclass(frozen=True)
class _GroupedEvalStream:
    """Batches by number, each with its mask."""

    data: GroupedData
    split: str
    batch_size: int
    rows: np.ndarray
    groups: tuple[_Group, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        data, (bucket, members) = self.data, self.groups[index]
        indices = members[np.minimum(self.rows, len(members) - 1)]
        source, spec = data.eval[self.split], data._spec(data._sizes[bucket])
        batch = assemble(data, source, data.eval_transforms, indices, indices, spec)
        return {**batch, "mask": (self.rows < len(members)).astype(np.float32)}


def _holds(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1]


def _first(sizes: Sequence[Size], size: Sequence[int]) -> int:
    """The place of the first size that holds another."""
    for place, one in enumerate(sizes):
        if _holds(one, size):
            return place
    raise UserError(
        f"an image of {size[0]}x{size[1]} after the transforms fits into no bucket, "
        f"not even into that of data.spec, {sizes[-1][0]}x{sizes[-1][1]}: choose a "
        "larger one, or scale the images down"
    )


def _measure(
    data: Data,
    source: Source,
    transforms: tuple[Transform, ...],
    indices: Int64[np.ndarray, "examples"],
    positions: Int64[np.ndarray, "examples"],
) -> Int64[np.ndarray, "examples 2"]:
    """The sizes of images after the transforms, without decoding any."""
    sizes = np.zeros((len(indices), 2), np.int64)
    measures = [t.measure for t in transforms if isinstance(t, Measurable)]
    annotation = annotations(source)
    places = zip(indices.tolist(), positions.tolist(), strict=True)
    for row, (index, position) in enumerate(places):
        height, width = annotation(index)["size"].tolist()
        rng = generator(data.seed, position)
        for measure in measures:
            height, width = measure((height, width), rng)
        sizes[row] = height, width
    return sizes
