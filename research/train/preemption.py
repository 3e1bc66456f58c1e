"""SIGTERM, noticed between two steps and agreed on by all processes."""

import signal
from types import TracebackType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Says at which step to save and leave. Use as a context manager.

    One process alone takes the signal itself. With several, JAX's coordination service
    takes it, and whichever process received it, all agree on the same step.
    """

    def __init__(self):
        self._received = False
        self._previous = None

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_) -> None:
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether to leave after `step`. Every process calls it after every step."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
