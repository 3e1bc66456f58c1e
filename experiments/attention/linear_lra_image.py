"""Linear attention on images of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/linear_lra_image.py

softmax_lra_image with another core.
Published: accuracy 42.34 %. Ours: ?
"""

from experiments.attention import softmax_lra_image as base
from research.experiment import Experiment
from research.layers.cores import Linear


def experiment(num_steps: int = 35_156, batch_size: int = 256) -> Experiment:
    """The published setting."""
    return base.of(Linear(), 42.34, num_steps, batch_size, num_params=248_842)
