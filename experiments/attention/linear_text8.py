"""Linear attention on text8.

    python -m launch.train experiments/attention/linear_text8.py

softmax_text8 with the core of Katharopoulos et al. 2020, arXiv:2006.16236.
Published: no figure. Ours: ?
"""

from experiments.attention import softmax_text8
from research.experiment import Experiment
from research.layers.cores import Linear


def experiment(num_steps: int = 100_000, batch_size: int = 64) -> Experiment:
    """As many parameters and steps as with a softmax."""
    return softmax_text8.of(Linear(), num_steps, batch_size, num_params=38_224_896)
