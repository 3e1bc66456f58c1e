"""Reformer's attention on text of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/reformer_lra_text.py

softmax_lra_text with another core.
Kitaev et al. 2020, arXiv:2001.04451: one round of hashing, chunks of 10.
Published: accuracy 56.1 %. Ours: ?
"""

from experiments.attention import softmax_lra_text as base
from research.experiment import Experiment
from research.layers.cores import LSH


def experiment(num_steps: int = 20_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        LSH(num_buckets=100, chunk_size=10),
        56.1,
        num_steps,
        batch_size,
        num_params=3_225_090,
    )
