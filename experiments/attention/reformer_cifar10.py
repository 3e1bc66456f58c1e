"""Reformer with one hash draws CIFAR-10: arXiv:2006.16236, Table 2.

    python -m launch.prepare experiments/attention/reformer_cifar10.py
    python -m launch.train experiments/attention/reformer_cifar10.py

linear_cifar10 with attention by hashing, 64 buckets and chunks of 37 positions.
Published: 3.39 bits a dimension. Ours: ?
"""

from experiments.attention import linear_cifar10 as base
from research.experiment import Experiment
from research.layers.cores import LSH


def experiment(num_steps: int = 312_500, batch_size: int = 16) -> Experiment:
    """As with linear attention."""
    core = LSH(64, 37, num_rounds=1, dropout_rate=0.1)
    return base.of(core, 3.39, num_steps, batch_size, num_params=11_624_990)
