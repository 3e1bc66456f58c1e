"""Local attention on Pathfinder of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/local_lra_pathfinder.py

softmax_lra_pathfinder with another core, in the sizes that the arena chose for it.
Attention within blocks of 64 positions.
Published: accuracy 66.63 %. Ours: ?
"""

from experiments.attention import softmax_lra_pathfinder as base
from research.experiment import Experiment
from research.layers.cores import Block, Sparse


def experiment(
    num_steps: int = 62_500, batch_size: int = 512, folder: str = base.FOLDER
) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(((Block(64),),)),
        66.63,
        num_steps,
        batch_size,
        folder,
        num_layers=2,
        num_heads=4,
        embed_dim=64,
        attention_dim=32,
        mlp_dim=64,
        dropout_rate=0.1,
        num_params=120_130,
    )
