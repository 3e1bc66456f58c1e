"""Where the wall time goes: one clock that is always in exactly one bucket."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

BUCKETS: tuple[str, ...] = (
    "init",
    "compile",
    "restore",
    "step",
    "data_wait",
    "save",
    "eval",
    "log",
)


class Clock:
    """Attributes every second since its creation to one of `BUCKETS`.

    Time outside any `measure` belongs to "init". Measures nest: the inner one counts,
    the outer one resumes. So the buckets always sum to the wall time.
    """

    def __init__(self, now=time.perf_counter):
        self._now = now
        self._start = self._mark = now()
        self._bucket = BUCKETS[0]
        self._seconds = dict.fromkeys(BUCKETS, 0.0)

    @contextmanager
    def measure(self, bucket: str) -> Iterator[None]:
        """Counts the time inside the `with` to `bucket`."""
        if bucket not in self._seconds:
            raise ValueError(f"no bucket {bucket!r}: there are {', '.join(BUCKETS)}")
        outer = self._switch(bucket)
        try:
            yield
        finally:
            self._switch(outer)

    def seconds(self) -> dict[str, float]:
        """Seconds in each bucket up to now."""
        self._switch(self._bucket)
        return dict(self._seconds)

    def wall(self) -> float:
        """Seconds since creation."""
        return self._now() - self._start

    def _switch(self, bucket: str) -> str:
        now = self._now()
        self._seconds[self._bucket] += now - self._mark
        self._mark, outer, self._bucket = now, self._bucket, bucket
        return outer
