"""Sparse attention on text8.

    python -m launch.train experiments/attention/sparse_text8.py

softmax_text8 with the fixed pattern of Child et al. 2019, arXiv:1904.10509: blocks of
32, of each of which 8 positions are seen from everywhere, others by each of four heads.
Published: no figure. Ours: ?
"""

from experiments.attention import softmax_text8
from research.experiment import Experiment
from research.layers.cores import Sparse, fixed


def experiment(num_steps: int = 100_000, batch_size: int = 64) -> Experiment:
    """As many parameters and steps as with a softmax."""
    core = Sparse(fixed(32, 8, num_columns=4), dropout_rate=0.1)
    return softmax_text8.of(core, num_steps, batch_size, num_params=38_224_896)
