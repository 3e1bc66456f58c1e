"""Linear attention on C4, from left to right.

    python -m launch.prepare experiments/attention/linear_c4.py
    python -m launch.train experiments/attention/linear_c4.py

softmax_c4 with the core of Katharopoulos et al. 2020, arXiv:2006.16236.
Published: no figure of this setting. Ours: ?
"""

from experiments.attention import softmax_c4
from research.experiment import Experiment
from research.layers.cores import Linear


def experiment(
    num_steps: int = 100_000, batch_size: int = 128, length: int = 2048
) -> Experiment:
    """As many parameters and steps as with a softmax."""
    return softmax_c4.of(
        Linear(), num_steps, batch_size, length, num_params=109_549_056
    )
