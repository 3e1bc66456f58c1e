"""Reformer's attention on images of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/reformer_lra_image.py

softmax_lra_image with another core, in the sizes that the arena chose for it.
Kitaev et al. 2020, arXiv:2001.04451: one round of hashing, chunks of 10.
Published: accuracy 38.07 %. Ours: ?
"""

from experiments.attention import softmax_lra_image as base
from research.experiment import Experiment
from research.layers.cores import LSH


def experiment(num_steps: int = 35_156, batch_size: int = 256) -> Experiment:
    """The published setting."""
    return base.of(
        LSH(num_buckets=102, chunk_size=10),
        38.07,
        num_steps,
        batch_size,
        num_layers=4,
        num_heads=8,
        embed_dim=64,
        attention_dim=32,
        mlp_dim=64,
        num_params=146_058,
    )
