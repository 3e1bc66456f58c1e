"""A Transformer draws CIFAR-10: arXiv:2006.16236, Table 2.

    python -m launch.prepare experiments/attention/softmax_cifar10.py
    python -m launch.train experiments/attention/softmax_cifar10.py

linear_cifar10 with softmax attention.
Published: 3.47 bits a dimension. Ours: ?
"""

from experiments.attention import linear_cifar10 as base
from research.experiment import Experiment
from research.layers.cores import Softmax


def experiment(num_steps: int = 312_500, batch_size: int = 16) -> Experiment:
    """As with linear attention."""
    core = Softmax(dropout_rate=0.1)
    return base.of(core, 3.47, num_steps, batch_size, num_params=12_677_662)
