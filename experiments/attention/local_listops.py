"""Local attention cannot evaluate short nested lists.

    python -m launch.train experiments/attention/local_listops.py

softmax_listops with attention within blocks of two positions: the one that is read
sees the first operator, and nothing beyond it through any number of layers. What must
not learn, then.
Required beforehand: an accuracy of between 0.15 and 0.25.
Ours: 0.196 of 2,000 trees that were not in training.
"""

from experiments.attention import softmax_listops
from research.experiment import Experiment
from research.layers.cores import Block, Sparse


def experiment(num_steps: int = 500, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_listops.of(
        Sparse(((Block(2),),)),
        num_steps,
        batch_size,
        above=0.15,
        below=0.25,
        num_params=155_082,
    )
