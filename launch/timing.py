"""Training steps of several makers, timed in turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Contender:
    """Someone's training step, ready to run.

    Attributes:
      name: who.
      step: runs one whole step, and returns when it is done.
      num_params: of the model.
      flops: of one step; see `research.train.flops`.
      peak_memory: bytes of the device that have been in use at most, None if unknown.
    """

    name: str
    step: Callable[[], None]
    num_params: int
    flops: int
    peak_memory: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Timing:
    """What one contender needed.

    Attributes:
      first: seconds of the first step, with what it compiles.
      median: seconds of a step after that.
      low, high: between which four steps of five lie, in seconds.
      processor: seconds of this process's cores in a step, all threads together: what
        is left of the time on a machine that others use, too.
    """

    name: str
    first: float
    median: float
    low: float
    high: float
    processor: float
    examples_per_second: float
    flops_per_second: float
    num_params: int
    flops: int
    peak_memory: int | None


def race(
    contenders: Sequence[Contender],
    batch_size: int,
    repeats: int,
    *,
    warm_up: int = 2,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Timing, ...]:
    """Times every contender `repeats` times, one step of each in every round.

    So all of them meet the same disturbances by whatever else the machine does.
    """
    firsts = []
    for contender in contenders:
        tell(f"{contender.name}: first step ...")
        firsts.append(_seconds(contender)[0])
        tell(f"{contender.name}: {firsts[-1]:.1f} s")
        for _ in range(warm_up - 1):
            contender.step()
    rounds = [[_seconds(c) for c in contenders] for _ in range(repeats)]
    lows, medians, highs = np.percentile(rounds, [10, 50, 90], axis=0)
    return tuple(
        Timing(
            name=contender.name,
            first=first,
            median=float(median),
            low=float(low),
            high=float(high),
            processor=float(processor),
            examples_per_second=batch_size / float(median),
            flops_per_second=contender.flops / float(median),
            num_params=contender.num_params,
            flops=contender.flops,
            peak_memory=contender.peak_memory(),
        )
        for contender, first, (median, processor), (low, _), (high, _) in zip(
            contenders, firsts, medians, lows, highs, strict=True
        )
    )


def _seconds(contender: Contender) -> tuple[float, float]:
    """Of one step: by the clock, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    contender.step()
    return time.perf_counter() - wall, time.process_time() - processor
