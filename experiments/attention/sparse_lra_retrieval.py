"""A Sparse Transformer on retrieval of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/sparse_lra_retrieval.py

softmax_lra_retrieval with another core.
The fixed pattern of Child et al. 2019, arXiv:1904.10509: blocks of 128, for each of
which 32 positions stand.
Published: accuracy 59.59 %. Ours: ?
"""

from experiments.attention import softmax_lra_retrieval as base
from research.experiment import Experiment
from research.layers.cores import Sparse, fixed


def experiment(
    num_steps: int = 5_000,
    batch_size: int = 32,
    folder: str = "~/data/twelvefold/lra_release/tsv_data",
) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(fixed(128, 32)),
        59.59,
        num_steps,
        batch_size,
        folder,
        num_params=1_088_258,
    )
