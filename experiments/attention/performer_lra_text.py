"""Performer on text of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/performer_lra_text.py

softmax_lra_text with another core.
Published: accuracy 65.4 %. Ours: ?
"""

from experiments.attention import softmax_lra_text as base
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(num_steps: int = 20_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        Performer(num_features=256), 65.4, num_steps, batch_size, num_params=3_487_234
    )
