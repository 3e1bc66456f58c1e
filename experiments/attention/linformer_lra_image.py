"""Linformer on images of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/linformer_lra_image.py

softmax_lra_image with another core.
Wang et al. 2020, arXiv:2006.04768, 16 combinations of positions.
Published: accuracy 38.56 %. Ours: ?
"""

from experiments.attention import softmax_lra_image as base
from research.experiment import Experiment
from research.layers.cores import Linformer


def experiment(num_steps: int = 35_156, batch_size: int = 256) -> Experiment:
    """The published setting."""
    return base.of(
        Linformer(max_length=1025, num_projected=16),
        38.56,
        num_steps,
        batch_size,
        num_params=281_642,
    )
