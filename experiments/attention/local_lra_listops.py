"""Local attention on ListOps of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/local_lra_listops.py

softmax_lra_listops with another core.
Attention within blocks of 50 positions.
Published: accuracy 15.82 %. Ours: ?
"""

from experiments.attention import softmax_lra_listops as base
from research.experiment import Experiment
from research.layers.cores import Block, Sparse


def experiment(num_steps: int = 5_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(((Block(50),),)), 15.82, num_steps, batch_size, num_params=8_949_258
    )
