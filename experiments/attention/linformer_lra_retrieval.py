"""Linformer on retrieval of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/linformer_lra_retrieval.py

softmax_lra_retrieval with another core.
Wang et al. 2020, arXiv:2006.04768, 16 combinations of positions.
Published: accuracy 52.27 %. Ours: ?
"""

from experiments.attention import softmax_lra_retrieval as base
from research.experiment import Experiment
from research.layers.cores import Linformer


def experiment(
    num_steps: int = 5_000,
    batch_size: int = 32,
    folder: str = "~/data/twelvefold/lra_release/tsv_data",
) -> Experiment:
    """The published setting."""
    return base.of(
        Linformer(max_length=4001, num_projected=16),
        52.27,
        num_steps,
        batch_size,
        folder,
        num_params=1_600_386,
    )
