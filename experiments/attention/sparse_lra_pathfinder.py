"""A Sparse Transformer on Pathfinder of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/sparse_lra_pathfinder.py

softmax_lra_pathfinder with another core, in the sizes that the arena chose for it.
The fixed pattern of Child et al. 2019, arXiv:1904.10509: blocks of 128, for each of
which 32 positions stand.
Published: accuracy 71.71 %. Ours: ?
"""

from experiments.attention import softmax_lra_pathfinder as base
from research.experiment import Experiment
from research.layers.cores import Sparse, fixed


def experiment(
    num_steps: int = 62_500, batch_size: int = 512, folder: str = base.FOLDER
) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(fixed(128, 32)),
        71.71,
        num_steps,
        batch_size,
        folder,
        num_layers=1,
        num_heads=8,
        embed_dim=32,
        attention_dim=16,
        mlp_dim=32,
        num_params=46_562,
    )
