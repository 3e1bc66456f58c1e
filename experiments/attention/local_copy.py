"""A window of 8 positions cannot copy a word: the negative control.

    python -m launch.train experiments/attention/local_copy.py

softmax_copy with the core of a window: what is to be copied lies 25 positions back, and
two layers reach 14.
Required beforehand: an accuracy of at most 0.15.
Ours: 0.100
"""

from experiments.attention import softmax_copy
from research.experiment import Experiment
from research.layers.cores import Sparse, local


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_copy.of(
        Sparse(local(8)),
        num_steps=num_steps,
        batch_size=batch_size,
        above=0.0,
        below=0.15,
    )
