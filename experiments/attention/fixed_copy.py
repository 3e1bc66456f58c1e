"""The fixed pattern of a Sparse Transformer copies a word.

    python -m launch.train experiments/attention/fixed_copy.py

softmax_copy with the core of Child et al. 2019,
arXiv:1904.10509: blocks of 8, for each of which the last 2 positions stand.
Required beforehand: an accuracy of at least 0.90.
Ours: 0.947
"""

from experiments.attention import softmax_copy
from research.experiment import Experiment
from research.layers.cores import Sparse, fixed


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_copy.of(
        Sparse(fixed(8, 2)), num_steps=num_steps, batch_size=batch_size, above=0.90
    )
