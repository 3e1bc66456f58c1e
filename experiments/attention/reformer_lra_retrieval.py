"""Reformer's attention on retrieval of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/reformer_lra_retrieval.py

softmax_lra_retrieval with another core.
Kitaev et al. 2020, arXiv:2001.04451: one round of hashing, chunks of 10.
Published: accuracy 53.4 %. Ours: ?
"""

from experiments.attention import softmax_lra_retrieval as base
from research.experiment import Experiment
from research.layers.cores import LSH


def experiment(
    num_steps: int = 5_000,
    batch_size: int = 32,
    folder: str = "~/data/twelvefold/lra_release/tsv_data",
) -> Experiment:
    """The published setting."""
    return base.of(
        LSH(num_buckets=400, chunk_size=10),
        53.4,
        num_steps,
        batch_size,
        folder,
        num_params=1_022_722,
    )
