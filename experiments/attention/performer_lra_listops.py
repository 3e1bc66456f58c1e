"""Performer on ListOps of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/performer_lra_listops.py

softmax_lra_listops with another core.
Published: accuracy 18.01 %.
Official setting: 2 random features here, 256 in the other tasks.
Ours: ?
"""

from experiments.attention import softmax_lra_listops as base
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(num_steps: int = 5_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        Performer(num_features=2), 18.01, num_steps, batch_size, num_params=8_949_258
    )
