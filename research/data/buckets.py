"""Batches of a few static shapes: small examples in large batches, and the reverse.

A step is compiled for each shape, so the shapes have to be few and known ahead. Which
examples stand in which batch is, as everywhere in the training stream, a pure function
of the seed and the step.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NoReturn

import numpy as np
from jaxtyping import Int64

from research.data.loader import (
    Batch,
    Bucket,
    Data,
    Rows,
    assemble,
    make_example,
    rows_of,
)
from research.data.packing import Measured
from research.data.permutation import GOLDEN, mix, permuted
from research.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of the parts of an example, by name."""


@dataclass(frozen=True, kw_only=True)
class BucketedData(Data):
    """Data whose training batches have one of several shapes.

    An example goes into the first bucket that holds it after the transforms, and zeros
    fill its parts up; it is an error if none does. `Schedule` says which examples stand
    in which batch. For this all examples are made once when the first batch is asked
    for; so their shapes may not depend on random draws. Only their lengths are asked
    for where nothing is transformed and the source knows them (`Measured`).

    `batch_size` and `spec` are those of the largest bucket, and whatever asks for one
    shape of batch, such as the evaluation, takes that.

    Attributes:
      smaller: the other buckets, from small to large.
    """

    smaller: tuple[Bucket, ...]

    fills: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not self.spec:
            raise UserError("buckets need data.spec, which says what the largest holds")
        for place, bucket in enumerate(self.smaller):
            self._check(place, bucket)

    def _check(self, place: int, bucket: Bucket) -> None:
        name, (*_, largest) = f"data.smaller.{place}", self.buckets()
        if bucket.batch_size < 1:
            raise UserError(
                f"{name}.batch_size={bucket.batch_size}: expected at least 1"
            )
        kinds, expected = (
            {n: k for n, (_, k) in b.spec.items()} for b in (bucket, largest)
        )
        if kinds != expected:
            raise UserError(
                f"{name} has the parts {kinds}, but data.spec {expected}: expected the "
                "same names and types"
            )
        if not _holds(largest, _shapes(bucket)):
            raise UserError(
                f"{name} holds {bucket}, which data.spec does not: {largest}"
            )
        for earlier in self.smaller[:place]:
            if _holds(earlier, _shapes(bucket)):
                raise UserError(
                    f"{name} holds {bucket}, as an earlier one does, {earlier}: sort "
                    "them from small to large"
                )
        if _holds(bucket, _shapes(largest)):
            raise UserError(
                f"{name} holds {bucket}, as much as data.spec: leave it out"
            )

    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes that training batches have, the largest last."""
        return (*self.smaller, Bucket(self.batch_size, self.spec))

    @cached_property
    def schedule(self) -> "Schedule":
        """Which examples stand in which batch."""
        buckets = self.buckets()
        one_axis = all(len(shape) == 1 for shape, _ in self.spec.values())
        if isinstance(self.train, Measured) and one_axis and not self.transforms:
            first = self._by_length(self.train.lengths(tuple(self.spec)))
        else:
            first = np.array([self._first(i) for i in range(len(self.train))], int)
        members = (np.flatnonzero(first == place) for place in range(len(buckets)))
        return Schedule(buckets, tuple(members), self.seed)

    def _by_length(self, lengths: np.ndarray) -> np.ndarray:
        """The first bucket that holds each example."""
        longest = [
            [bucket.spec[name][0][0] for name in self.spec] for bucket in self.buckets()
        ]
        fits = [(lengths <= np.array(limits)).all(axis=1) for limits in longest]
        for index in np.flatnonzero(~fits[-1])[:1].tolist():
            sizes = zip(self.spec, lengths[index].tolist(), strict=True)
            self._refuse(index, {name: (size,) for name, size in sizes})
        return np.argmax(fits, axis=0)

    def _first(self, index: int) -> int:
        """The first bucket that holds an example, which is made for it."""
        example = make_example(self, self.train, self.transforms, index, index)
        shapes = {n: np.shape(example[n]) for n in self.spec if n in example}
        for place, bucket in enumerate(self.buckets()):
            if _holds(bucket, shapes):
                return place
        self._refuse(index, shapes)

    def _refuse(self, index: int, shapes: Shapes) -> NoReturn:
        raise UserError(
            f"example {index} of data.train has the shapes {shapes}, and no bucket "
            f"holds them, not even that of data.spec, {self.buckets()[-1]}: shorten "
            "such examples, or leave them out"
        )

    def _stream(self, start_step: int, rows: Rows | None) -> "_BucketStream":
        wanted = {b.batch_size: rows_of(rows, b.batch_size) for b in self.buckets()}
        return _BucketStream(self, self.schedule, start_step, wanted)


@dataclass(frozen=True)
class _BucketStream:
    """Batches by number, counted from `start_step`."""

    data: BucketedData
    schedule: "Schedule"
    start_step: int
    rows: dict[int, np.ndarray]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        data, step = self.data, self.start_step + index
        bucket, examples = self.schedule.batch(step)
        rows = self.rows[bucket.batch_size]
        # No two places of the stream have a number in common.
        positions = step * max(self.rows) + rows
        return assemble(
            data, data.train, data.transforms, examples[rows], positions, bucket.spec
        )


def _shapes(bucket: Bucket) -> Shapes:
    return {name: shape for name, (shape, _) in bucket.spec.items()}


def _kinds(bucket: Bucket) -> dict[str, str]:
    return {name: dtype for name, (_, dtype) in bucket.spec.items()}


def _holds(bucket: Bucket, shapes: Shapes) -> bool:
    """Whether zeros can fill parts of these shapes up to those of the bucket."""
    return all(
        len(shape) == len(shapes[name])
        and all(n >= m for n, m in zip(shape, shapes[name], strict=True))
        for name, shape in _shapes(bucket).items()
        if name in shapes
    )


def length_buckets(
    lengths: Sequence[int],
    num_tokens: int,
    parts: Sequence[str] = ("tokens",),
    multiple: int = 8,
) -> tuple[Bucket, ...]:
    """Buckets of sequences, with about as many tokens in each one's batches.

    For `BucketedData`: the last gives `batch_size` and `spec`, the others `smaller`.

    Args:
      lengths: of the rows, ascending.
      num_tokens: at most so many in each part of a batch, padding included.
      parts: of an example, int32 (length,) each.
      multiple: of which the batch sizes are: of the devices that a batch is split over.
    """
    buckets = []
    for length in lengths:
        batch_size = num_tokens // length // multiple * multiple
        if not batch_size:
            raise UserError(
                f"a batch of {num_tokens} tokens has no {multiple} rows of {length}: "
                f"choose at least {multiple * length}"
            )
        spec = {name: ((length,), "int32") for name in parts}
        buckets.append(Bucket(batch_size, spec))
    return tuple(buckets)


@dataclass(frozen=True)
class Schedule:
    """Which examples stand in which batch of an endless stream of epochs.

    In every epoch the examples of each bucket are put in an order of its own and cut
    into batches, and the batches of all buckets in an order of theirs. The examples
    that are left over, fewer than a batch, join those of the first later bucket that
    holds them. So an epoch has every example once, but for what is left over of the
    last bucket: `num_lost`, fewer than a batch of it, others in every epoch.

    Attributes:
      buckets: the last one holds all others.
      members: the examples of each, by the first bucket that holds them.
      seed: of all orders.
    """

    buckets: tuple[Bucket, ...]
    members: tuple[Int64[np.ndarray, "..."], ...]
    seed: int

    def __post_init__(self):
        size = len(self.members[-1])
        if size and not self._full[-1]:
            raise UserError(
                f"{size} examples fit only into the largest batches and do not make "
                f"one, {self.buckets[-1]}: they would never be seen: choose a smaller "
                "data.batch_size, or shorten such examples, or leave them out"
            )
        if not self.num_batches:
            raise UserError(
                f"{sum(map(len, self.members))} examples do not make one batch: choose "
                "smaller batch sizes"
            )

    @cached_property
    def _parents(self) -> list[int]:
        """The first later bucket that holds each one; the last one has none."""
        last = len(self.buckets) - 1
        return [
            next(
                p for p in range(b + 1, last + 1) if _holds(self.buckets[p], _shapes(x))
            )
            for b, x in enumerate(self.buckets[:-1])
        ]

    @cached_property
    def _sizes(self) -> list[int]:
        """The examples of each bucket in an epoch, with those that join it."""
        sizes = [len(members) for members in self.members]
        for bucket, parent in enumerate(self._parents):
            sizes[parent] += sizes[bucket] % self.buckets[bucket].batch_size
        return sizes

    @cached_property
    def _full(self) -> list[int]:
        """The batches of each bucket in an epoch."""
        pairs = zip(self._sizes, self.buckets, strict=True)
        return [size // bucket.batch_size for size, bucket in pairs]

    @property
    def num_batches(self) -> int:
        """In an epoch."""
        return sum(self._full)

    @property
    def num_lost(self) -> int:
        """Examples that an epoch leaves out."""
        return self._sizes[-1] % self.buckets[-1].batch_size

    def batch(self, step: int) -> tuple[Bucket, Int64[np.ndarray, "batch"]]:
        """The bucket and the examples of the batch of a step."""
        epoch = step // self.num_batches
        slot = int(permuted(np.array([step]), self.num_batches, self._seed(0))[0])
        ends = np.cumsum(self._full)
        chosen = int(np.searchsorted(ends, slot, side="right"))
        bucket = self.buckets[chosen]
        number = slot - (int(ends[chosen]) - self._full[chosen])
        places = number * bucket.batch_size + np.arange(bucket.batch_size)
        return bucket, self._examples(chosen, places, epoch)

    def _examples(
        self, bucket: int, places: Int64[np.ndarray, "some"], epoch: int
    ) -> Int64[np.ndarray, "some"]:
        """The examples at some places in a bucket's order of an epoch."""
        size = self._sizes[bucket]
        order = permuted(places + epoch * size, size, self._seed(1 + bucket))
        own = self.members[bucket]
        result = np.zeros_like(order)
        result[order < len(own)] = own[order[order < len(own)]]
        joined = len(own)
        for child, parent in enumerate(self._parents):
            if parent == bucket:
                cut = self._full[child] * self.buckets[child].batch_size
                left = self._sizes[child] - cut
                here = (joined <= order) & (order < joined + left)
                if here.any():
                    lower = cut + order[here] - joined
                    result[here] = self._examples(child, lower, epoch)
                joined += left
        return result

    def _seed(self, number: int) -> int:
        return int(mix(self.seed + GOLDEN * np.array([number], np.uint64))[0])

    def __str__(self) -> str:
        numbers = " + ".join(map(str, self._full))
        total = sum(map(len, self.members))
        return (
            f"an epoch is {numbers} = {self.num_batches} batches, without "
            f"{self.num_lost} of {total} examples"
        )
