"""Linear attention evaluates short nested lists.

    python -m launch.train experiments/attention/linear_listops.py

softmax_listops with the core of Katharopoulos et al. 2020, arXiv:2006.16236.
Required beforehand: an accuracy of at least 0.40.
Ours: 0.535 of 2,000 trees that were not in training.
"""

from experiments.attention import softmax_listops
from research.experiment import Experiment
from research.layers.cores import Linear


def experiment(num_steps: int = 500, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_listops.of(
        Linear(), num_steps, batch_size, above=0.40, num_params=155_082
    )
