"""A gated attention unit with a softmax copies a word.

    python -m launch.train experiments/flash/softmax_copy.py

quad_copy with another core (Hua et al. 2022, arXiv:2202.10447).
Required beforehand: an accuracy of at least 0.99.
Ours: 1.0
"""

from experiments.flash import quad_copy
from research.experiment import Experiment
from research.layers.cores import Softmax


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """About a minute on a CPU core."""
    return quad_copy.of(Softmax(), 0.99, num_steps, batch_size)
