"""Performer on C4, from left to right.

    python -m launch.prepare experiments/attention/performer_c4.py
    python -m launch.train experiments/attention/performer_c4.py

softmax_c4 with the core of Choromanski et al. 2021, arXiv:2009.14794: 256 features,
drawn anew at each step.
Published: no figure of this setting. Ours: ?
"""

from experiments.attention import softmax_c4
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(
    num_steps: int = 100_000, batch_size: int = 128, length: int = 2048
) -> Experiment:
    """As many parameters and steps as with a softmax."""
    return softmax_c4.of(
        Performer(), num_steps, batch_size, length, num_params=109_549_056
    )
