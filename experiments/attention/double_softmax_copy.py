"""Efficient attention copies a word.

    python -m launch.train experiments/attention/double_softmax_copy.py

softmax_copy with the core of Shen et al. 2021,
arXiv:1812.01243, its causal form.
Required beforehand: an accuracy of at least 0.98.
Ours: 1.0
"""

from experiments.attention import softmax_copy
from research.experiment import Experiment
from research.layers.cores import DoubleSoftmax


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_copy.of(DoubleSoftmax(), 0.98, num_steps, batch_size)
