"""A Sparse Transformer on images of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/sparse_lra_image.py

softmax_lra_image with another core.
The fixed pattern of Child et al. 2019, arXiv:1904.10509: blocks of 128, for each of
which 32 positions stand.
Published: accuracy 44.24 %. Ours: ?
"""

from experiments.attention import softmax_lra_image as base
from research.experiment import Experiment
from research.layers.cores import Sparse, fixed


def experiment(num_steps: int = 35_156, batch_size: int = 256) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(fixed(128, 32)), 44.24, num_steps, batch_size, num_params=248_842
    )
