"""Linformer on ListOps of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/linformer_lra_listops.py

softmax_lra_listops with another core.
Wang et al. 2020, arXiv:2006.04768, 16 combinations of positions.
Published: accuracy 35.7 %. Ours: ?
"""

from experiments.attention import softmax_lra_listops as base
from research.experiment import Experiment
from research.layers.cores import Linformer


def experiment(num_steps: int = 5_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        Linformer(max_length=2001, num_projected=16),
        35.7,
        num_steps,
        batch_size,
        num_params=9_205_386,
    )
