"""Performer on images of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/performer_lra_image.py

softmax_lra_image with another core.
Published: accuracy 42.77 %. Ours: ?
"""

from experiments.attention import softmax_lra_image as base
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(num_steps: int = 35_156, batch_size: int = 256) -> Experiment:
    """The published setting."""
    return base.of(
        Performer(num_features=256), 42.77, num_steps, batch_size, num_params=248_842
    )
