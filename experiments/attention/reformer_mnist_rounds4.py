"""Reformer with four hashes draws MNIST: arXiv:2006.16236, Table 1.

    python -m launch.prepare experiments/attention/reformer_mnist_rounds4.py
    python -m launch.train experiments/attention/reformer_mnist_rounds4.py

linear_mnist with attention by hashing, 64 buckets and chunks of 29 positions.
Published: 0.676 bits a dimension. Ours: ?
"""

from experiments.attention import linear_mnist as base
from research.experiment import Experiment
from research.layers.cores import LSH


def experiment(num_steps: int = 937_500, batch_size: int = 16) -> Experiment:
    """As with linear attention."""
    core = LSH(64, 29, num_rounds=4, dropout_rate=base.DROPOUT)
    return base.mnist(core, 0.676, num_steps, batch_size, num_params=5_833_246)
