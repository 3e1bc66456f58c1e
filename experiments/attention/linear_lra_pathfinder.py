"""Linear attention on Pathfinder of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/linear_lra_pathfinder.py

softmax_lra_pathfinder with another core, in the sizes that the arena chose for it.
Published: accuracy 75.3 %. Ours: ?
"""

from experiments.attention import softmax_lra_pathfinder as base
from research.experiment import Experiment
from research.layers.cores import Linear


def experiment(
    num_steps: int = 62_500, batch_size: int = 512, folder: str = base.FOLDER
) -> Experiment:
    """The published setting."""
    return base.of(
        Linear(),
        75.3,
        num_steps,
        batch_size,
        folder,
        num_layers=1,
        num_heads=2,
        embed_dim=128,
        attention_dim=64,
        mlp_dim=128,
        num_params=247_682,
    )
