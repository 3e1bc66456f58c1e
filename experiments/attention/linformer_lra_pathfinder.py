"""Linformer on Pathfinder of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/linformer_lra_pathfinder.py

softmax_lra_pathfinder with another core, in the sizes that the arena chose for it.
Wang et al. 2020, arXiv:2006.04768, 16 combinations of positions.
Published: accuracy 76.34 %. Ours: ?
"""

from experiments.attention import softmax_lra_pathfinder as base
from research.experiment import Experiment
from research.layers.cores import Linformer


def experiment(
    num_steps: int = 62_500, batch_size: int = 512, folder: str = base.FOLDER
) -> Experiment:
    """The published setting."""
    return base.of(
        Linformer(max_length=1024, num_projected=16),
        76.34,
        num_steps,
        batch_size,
        folder,
        num_layers=1,
        num_heads=2,
        embed_dim=32,
        attention_dim=16,
        mlp_dim=32,
        num_params=79_330,
    )
