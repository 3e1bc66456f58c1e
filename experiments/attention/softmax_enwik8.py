"""A Transformer with dense attention on enwik8: arXiv:1904.10509, Table 2.

    python -m launch.train experiments/attention/softmax_enwik8.py

sparse_enwik8 with another core: what its patterns are compared with.
Published: 1.00 bits a byte, 1.31 seconds an iteration on 8 V100. Ours: ?
"""

from experiments.attention import sparse_enwik8 as base
from research.experiment import Experiment
from research.layers.cores import Softmax


def experiment(num_steps: int = 73_000, batch_size: int = 8) -> Experiment:
    """The published setting."""
    return base.of(Softmax(), 1.00, num_steps, batch_size, num_params=94_953_472)
