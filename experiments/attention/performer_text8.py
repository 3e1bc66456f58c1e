"""Performer on text8.

    python -m launch.train experiments/attention/performer_text8.py

softmax_text8 with the core of Choromanski et al. 2021, arXiv:2009.14794: 256 features,
drawn anew at each step.
Published: no figure. Ours: ?
"""

from experiments.attention import softmax_text8
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(num_steps: int = 100_000, batch_size: int = 64) -> Experiment:
    """As many parameters and steps as with a softmax."""
    return softmax_text8.of(Performer(), num_steps, batch_size, num_params=38_224_896)
