"""A Sparse Transformer on ListOps of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/sparse_lra_listops.py

softmax_lra_listops with another core.
The fixed pattern of Child et al. 2019, arXiv:1904.10509: blocks of 128, for each of
which 32 positions stand.
Published: accuracy 17.07 %. Ours: ?
"""

from experiments.attention import softmax_lra_listops as base
from research.experiment import Experiment
from research.layers.cores import Sparse, fixed


def experiment(num_steps: int = 5_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(fixed(128, 32)), 17.07, num_steps, batch_size, num_params=8_949_258
    )
