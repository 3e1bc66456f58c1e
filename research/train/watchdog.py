"""A thread that ends a process in which nothing happens any more.

A peer that is alive but stuck leaves the others waiting in a collective for ever, and
no exception is raised. The watchdog writes all stacks and exits, so that a scheduler
can start the job again from its last checkpoint.
"""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

from research.errors import STUCK_EXIT_CODE

SLOW = 10.0
"""Patience for what may take many times as long as a step: starting, evaluating."""


class Watchdog:
    """Ends the process with `STUCK_EXIT_CODE` if `beat` is not called for `seconds`.

    Use as a context manager, in which the first beat may take `SLOW` times as long. The
    stacks go to standard error and to `stacks_file`.
    """

    def __init__(self, seconds: float, stacks_file: Path):
        self._seconds = seconds
        self._file = stacks_file
        self._last, self._limit = time.monotonic(), SLOW * seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat(SLOW)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def beat(self, patience: float = 1.0) -> None:
        """Tells that the run has got on; the next beat may take `patience` as long."""
        self._last, self._limit = time.monotonic(), patience * self._seconds

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self._limit:
                self._end(silent)

    def _end(self, silent: float) -> None:
        print(
            f"no progress for {silent:.0f} s: this process or one that it waits for is "
            f"stuck; stacks follow and are in {self._file}; exit {STUCK_EXIT_CODE}",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            with self._file.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            os._exit(STUCK_EXIT_CODE)
