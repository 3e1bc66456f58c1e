"""From sources to batches: an order that depends on the seed and the step alone.

The training stream is a pure function of (seed, step): row r of global batch k stands
at position p = k * batch_size + r; position p is an example (`permutation.permuted`)
and a random generator for its transforms. So batch k is the same, bit for bit, for
every number of processes, workers and restarts, and to resume takes the step number.

How batches are made ready ahead of time is separate from what they are: a background
thread here, or worker processes that Grain runs.
"""

import itertools
import sys
import warnings
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from research.data.permutation import permuted
from research.data.sources import Example, Source
from research.data.transforms import Transform
from research.errors import UserError

Batch = dict[str, np.ndarray]
"""Arrays with a leading batch dimension, by name."""

Spec = dict[str, tuple[tuple[int, ...], str]]
"""The shape and the dtype of the parts of an example, by name."""

Rows = Sequence[int] | Mapping[int, Sequence[int]]
"""Which rows of a global batch; by its batch size, where batches have several."""

Batches = Generator[Batch, None, None]
"""An iterator of batches. `close()` it to end its thread or processes."""


@dataclass(frozen=True)
class Bucket:
    """One static shape of batches: a step is compiled for each.

    Attributes:
      batch_size: examples in a global batch of this shape.
      spec: the parts of an example, as in `Data.spec`.
    """

    batch_size: int
    spec: Spec = field(hash=False)

    def __str__(self) -> str:
        parts = (
            f"{name} {'x'.join(map(str, shape))}"
            for name, (shape, _) in self.spec.items()
            if shape
        )
        return f"{self.batch_size} rows of {', '.join(parts) or 'numbers'}"


@dataclass(frozen=True, kw_only=True)
class Data:
    """What an experiment reads, and in which batches.

    Attributes:
      train: the examples to train on.
      eval: the examples to evaluate on, by split name.
      batch_size: examples in a global batch, over all processes.
      transforms: applied in order to each training example.
      eval_transforms: the same for evaluation.
      spec: what of an example goes into a batch after the transforms, as `{name:
        (shape, dtype)}`; other parts are left out. With it a step can be compiled where
        the data are not; without it everything goes, shaped as in the first example.
      seed: of the order and of the transforms' random draws.
      num_workers: processes that make batches, 0 for a thread. They are spawned: a
        script that asks for them needs the `if __name__ == "__main__"` guard.
      prefetch: batches made ahead, by the thread or by each worker.
    """

    train: Source
    eval: dict[str, Source] = field(default_factory=dict, hash=False)
    batch_size: int
    transforms: tuple[Transform, ...] = ()
    eval_transforms: tuple[Transform, ...] = ()
    spec: Spec = field(default_factory=dict, hash=False)
    seed: int = 0
    num_workers: int = field(default=0, metadata={"operational": True})
    prefetch: int = field(default=2, metadata={"operational": True})

    # Whether zeros fill parts that are smaller than `spec` says.
    fills: ClassVar[bool] = False

    def __post_init__(self):
        least = {"batch_size": 1, "seed": 0, "num_workers": 0, "prefetch": 0}
        for name, minimum in least.items():
            _at_least(minimum, name, getattr(self, name))

    def shapes(self) -> Spec:
        """`spec`, or else what the first training example holds."""
        if self.spec:
            return self.spec
        first = self.batch(0, [0])
        return {name: (part.shape[1:], str(part.dtype)) for name, part in first.items()}

    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes that training batches have, the largest last."""
        return (Bucket(self.batch_size, self.shapes()),)

    def batch(self, step: int, rows: Rows | None = None) -> Batch:
        """The training batch of one step, made here and now; see `batches`."""
        return self._stream(step, rows)[0]

    def batches(self, start_step: int = 0, rows: Rows | None = None) -> Batches:
        """The global batches of steps `start_step`, `start_step + 1`, ... without end.

        Args:
          start_step: the step to begin or to resume at.
          rows: which rows of each global batch to make, for a process that holds only
            some of them; by default all.

        Raises:
          UserError: while iterating, for what a source or a transform finds wrong, or
            for examples that do not fit into one batch.
        """
        return self._run(self._stream(start_step, rows))

    def _stream(self, start_step: int, rows: Rows | None) -> "_Stream":
        return _TrainStream(self, start_step, rows_of(rows, self.batch_size))

    def eval_batches(
        self, split: str, batch_size: int, rows: Sequence[int] | None = None
    ) -> Batches:
        """Every example of a split once, in order.

        Each batch has `mask`, float32 (batch,): 1 for examples, 0 for the rows that
        fill the last batch up (with the last example, so that they are valid input).

        Args:
          split: a name in `eval`.
          batch_size: of the global batches.
          rows: as in `batches`.

        Raises:
          UserError: no such split; and as in `batches`.
        """
        if split not in self.eval:
            raise UserError(
                f"no evaluation split {split!r}: data.eval has "
                f"{', '.join(self.eval) or 'none'}"
            )
        _at_least(1, "the evaluation's batch_size", batch_size)
        rows_made = rows_of(rows, batch_size)
        return self._run(self._eval_stream(split, batch_size, rows_made))

    def _eval_stream(self, split: str, batch_size: int, rows: np.ndarray) -> "_Stream":
        return _EvalStream(self, split, batch_size, rows)

    def _run(self, stream: "_Stream") -> Batches:
        if not self.num_workers:
            return _in_thread(stream, self.prefetch)
        try:
            import grain  # noqa: F401
        except ImportError:
            warnings.warn(
                f"num_workers={self.num_workers} needs Grain (pip install grain): one "
                "thread makes the same batches instead",
                stacklevel=3,
            )
            return _in_thread(stream, self.prefetch)
        return _in_processes(stream, self.num_workers, self.prefetch)


# What the batches are


@dataclass(frozen=True)
class _TrainStream:
    """Batches by number, counted from `start_step`."""

    data: Data
    start_step: int
    rows: np.ndarray

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        data = self.data
        positions = (self.start_step + index) * data.batch_size + self.rows
        size = _size(data.train, "data.train")
        indices = permuted(positions, size, data.seed)
        return assemble(data, data.train, data.transforms, indices, positions)


@dataclass(frozen=True)
class _EvalStream:
    """Batches by number, each with its mask."""

    data: Data
    split: str
    batch_size: int
    rows: np.ndarray

    @property
    def _num_examples(self) -> int:
        return _size(self.data.eval[self.split], f"data.eval.{self.split}")

    def __len__(self) -> int:
        return -(-self._num_examples // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        data, size = self.data, self._num_examples
        positions = index * self.batch_size + self.rows
        indices = np.minimum(positions, size - 1)
        source = data.eval[self.split]
        batch = assemble(data, source, data.eval_transforms, indices, indices)
        if "mask" in batch:
            raise UserError(
                f"data.eval.{self.split} has a part named mask, the name for which of "
                "the rows count: rename it in a transform, or list others in data.spec"
            )
        return {**batch, "mask": (positions < size).astype(np.float32)}


@runtime_checkable
class _Stream(Protocol):
    """Batches by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


def generator(seed: int, position: int) -> np.random.Generator:
    """What the transforms of the example at a place in the stream draw from."""
    # Counter-based: the key alone opens a stream of its own.
    key = np.array([seed, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def make_example(
    data: Data,
    source: Source,
    transforms: tuple[Transform, ...],
    index: int,
    position: int,
) -> Example:
    """One example after its transforms, whose random generator is that of `position`.

    Raises:
      Exception: what the source or a transform raises, with a note which example it is.
    """
    try:
        example = source[index]
        if transforms:
            rng = generator(data.seed, position)
            for transform in transforms:
                example = transform(example, rng)
    except Exception as error:
        error.add_note(f"while making example {index} of {source!r:.200}")
        raise
    return example


def assemble(
    data: Data,
    source: Source,
    transforms: tuple[Transform, ...],
    indices: np.ndarray,
    positions: np.ndarray,
    spec: Spec | None = None,
) -> Batch:
    """One batch of `spec`, by default of the data's own; see `make_example`."""
    places = zip(indices.tolist(), positions.tolist(), strict=True)
    examples = [make_example(data, source, transforms, i, p) for i, p in places]
    spec = spec or data.spec
    model = "data.spec" if spec else f"example {indices[0]}"
    return {
        name: _stack(name, examples, indices, shape, np.dtype(dtype), model, data.fills)
        for name, (shape, dtype) in (spec or _spec_of(examples[0])).items()
    }


def _spec_of(example: Example) -> Spec:
    """All of an example, its numbers in 32 bits at most, as they are on devices."""
    parts = {name: np.asarray(part) for name, part in example.items()}
    narrow = {"int64": "int32", "uint64": "uint32", "float64": "float32"}
    return {
        name: (part.shape, narrow.get(str(part.dtype), str(part.dtype)))
        for name, part in parts.items()
    }


def _stack(
    name: str,
    examples: list[Example],
    indices: np.ndarray,
    shape: tuple[int, ...],
    dtype: np.dtype,
    model: str,
    fills: bool,
) -> np.ndarray:
    """One part of every example as one array; `model` is what they are to be like."""
    parts = []
    for index, example in zip(indices, examples, strict=True):
        if name not in example:
            raise UserError(
                f"example {index} has no {name!r}, unlike {model}: it has "
                f"{', '.join(example)}"
            )
        part = np.asarray(example[name])
        if fills and part.ndim == len(shape):
            missing = [
                (0, max(0, n - m)) for n, m in zip(shape, part.shape, strict=True)
            ]
            part = np.pad(part, missing) if shape else part
        if part.shape != shape:
            raise UserError(
                f"{name!r} of example {index} has shape {part.shape}, but {shape} in "
                f"{model}: bring all examples to one shape with transforms, such as "
                "Resize and CenterCrop, or Pad"
            )
        parts.append(part)
    stacked = np.stack(parts)
    if dtype.kind not in "biuf":
        raise UserError(
            f"{name!r} is {dtype}, which no device holds: encode it in a transform, or "
            "list the other parts in data.spec"
        )
    if stacked.dtype.kind in "biu" or stacked.dtype.kind == dtype.kind:
        cast = stacked.astype(dtype, copy=False)
        if dtype.kind == "f" or np.array_equal(cast, stacked):
            return cast
    raise UserError(
        f"{name!r} holds {stacked.dtype} values that are not {dtype}, unlike {model} "
        "or beyond 32 bits: convert them in a transform"
    )


# How they are made ahead


def _in_thread(stream: _Stream, prefetch: int) -> Batches:
    """One thread, so that sources need not be thread-safe."""
    if not prefetch:
        yield from (stream[number] for number in range(len(stream)))
        return
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
    futures = (executor.submit(stream.__getitem__, n) for n in range(len(stream)))
    try:
        pending = deque(itertools.islice(futures, prefetch))
        while pending:
            batch = pending.popleft().result()
            pending.extend(itertools.islice(futures, 1))
            yield batch
    finally:
        executor.shutdown(cancel_futures=True)


def _in_processes(stream: _Stream, num_workers: int, prefetch: int) -> Batches:
    """Whole batches from Grain's processes, through shared memory, in order."""
    import grain
    from absl import flags

    # Grain reads absl's flags, which a program without absl's main never parses.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    unbuffered = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(
        num_workers=min(num_workers, len(stream)),
        per_worker_buffer_size=max(prefetch, 1),
    )
    dataset = grain.MapDataset.source(stream).to_iter_dataset(unbuffered)
    iterator = iter(dataset.mp_prefetch(processes))
    try:
        for batch in iterator:
            # Copies: memory shared with workers is scarce and must not outlive them.
            yield {name: np.array(part) for name, part in batch.items()}
    finally:
        iterator.close()


# Arguments


def _at_least(minimum: int, name: str, value: int) -> None:
    if value < minimum:
        raise UserError(f"{name}={value}: expected at least {minimum}")


def rows_of(rows: Rows | None, batch_size: int) -> np.ndarray:
    """The rows to make of a batch of `batch_size`."""
    if isinstance(rows, Mapping):
        rows = rows[batch_size]
    chosen = np.asarray(range(batch_size) if rows is None else rows, np.int64)
    if not chosen.size or chosen.min() < 0 or chosen.max() >= batch_size:
        raise ValueError(f"rows {rows} of a batch of {batch_size}: expected some of it")
    return chosen


def _size(source: Source, name: str) -> int:
    if not len(source):
        raise UserError(f"{name} has no examples: check its folder and split")
    return len(source)
