"""Local attention on retrieval of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/local_lra_retrieval.py

softmax_lra_retrieval with another core.
Attention within blocks of 50 positions.
Published: accuracy 53.39 %. Ours: ?
"""

from experiments.attention import softmax_lra_retrieval as base
from research.experiment import Experiment
from research.layers.cores import Block, Sparse


def experiment(
    num_steps: int = 5_000,
    batch_size: int = 32,
    folder: str = "~/data/twelvefold/lra_release/tsv_data",
) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(((Block(50),),)),
        53.39,
        num_steps,
        batch_size,
        folder,
        num_params=1_088_258,
    )
