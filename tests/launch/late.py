"""Batches of three shapes, whose steps the second process takes long to compile."""

import time
from dataclasses import dataclass, replace

import jax

from research.experiment import Experiment
from tests.train import lengths

LATE = iter([8.0])
"""Seconds, once."""


@dataclass(frozen=True)
class Late(lengths.NextToken):
    """The last of three steps takes one process some seconds more to trace."""

    def loss(self, variables, batch, rng, train):
        if jax.process_index() == 1 and batch["tokens"].shape[1] == 16:
            time.sleep(next(LATE, 0.0))
        return super().loss(variables, batch, rng, train)


def experiment() -> Experiment:
    """`tests.train.lengths`, late."""
    return replace(lengths.experiment(), task=Late(), evals={})
