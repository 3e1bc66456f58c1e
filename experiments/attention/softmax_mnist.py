"""A Transformer draws MNIST: arXiv:2006.16236, Table 1.

    python -m launch.prepare experiments/attention/softmax_mnist.py
    python -m launch.train experiments/attention/softmax_mnist.py

linear_mnist with softmax attention.
Published: 0.621 bits a dimension. Ours: ?
"""

from experiments.attention import linear_mnist as base
from research.experiment import Experiment
from research.layers.cores import Softmax


def experiment(num_steps: int = 937_500, batch_size: int = 16) -> Experiment:
    """As with linear attention."""
    core = Softmax(dropout_rate=base.DROPOUT)
    return base.mnist(core, 0.621, num_steps, batch_size, num_params=6_359_582)
