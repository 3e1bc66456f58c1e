"""Reformer's attention on Pathfinder of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/reformer_lra_pathfinder.py

softmax_lra_pathfinder with another core, in the sizes that the arena chose for it.
Kitaev et al. 2020, arXiv:2001.04451: one round of hashing, chunks of 10.
Published: accuracy 68.5 %. Ours: ?
"""

from experiments.attention import softmax_lra_pathfinder as base
from research.experiment import Experiment
from research.layers.cores import LSH


def experiment(
    num_steps: int = 62_500, batch_size: int = 512, folder: str = base.FOLDER
) -> Experiment:
    """The published setting."""
    return base.of(
        LSH(num_buckets=102, chunk_size=10),
        68.5,
        num_steps,
        batch_size,
        folder,
        num_layers=2,
        num_heads=8,
        embed_dim=64,
        attention_dim=32,
        mlp_dim=64,
        num_params=116_034,
    )
