"""Performer on Pathfinder of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/performer_lra_pathfinder.py

softmax_lra_pathfinder with another core, in the sizes that the arena chose for it.
Published: accuracy 77.05 %. Ours: ?
"""

from experiments.attention import softmax_lra_pathfinder as base
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(
    num_steps: int = 62_500, batch_size: int = 512, folder: str = base.FOLDER
) -> Experiment:
    """The published setting."""
    return base.of(
        Performer(num_features=256),
        77.05,
        num_steps,
        batch_size,
        folder,
        num_layers=4,
        num_heads=8,
        embed_dim=32,
        attention_dim=16,
        mlp_dim=32,
        num_params=59_426,
    )
