"""Performer evaluates short nested lists.

    python -m launch.train experiments/attention/performer_listops.py

softmax_listops with the core of Choromanski et al. 2021, arXiv:2009.14794: 64 features,
drawn anew at each step.
Required beforehand: an accuracy of at least 0.40.
Ours: 0.518 of 2,000 trees that were not in training.
"""

from experiments.attention import softmax_listops
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(num_steps: int = 500, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_listops.of(
        Performer(num_features=64),
        num_steps,
        batch_size,
        above=0.40,
        num_params=155_082,
    )
