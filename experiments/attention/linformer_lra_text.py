"""Linformer on text of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/linformer_lra_text.py

softmax_lra_text with another core.
Wang et al. 2020, arXiv:2006.04768, 32 combinations of positions.
Published: accuracy 53.94 %. Ours: ?
"""

from experiments.attention import softmax_lra_text as base
from research.experiment import Experiment
from research.layers.cores import Linformer


def experiment(num_steps: int = 20_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        Linformer(max_length=1001, num_projected=32),
        53.94,
        num_steps,
        batch_size,
        num_params=3_743_490,
    )
