"""Linear attention with 1 + cos(q, k) copies a word.

    python -m launch.train experiments/attention/taylor_copy.py

softmax_copy with the core of Su 2020,
kexue.fm/archives/7546.
Required beforehand: an accuracy of at least 0.35.
Ours: 0.472
"""

from experiments.attention import softmax_copy
from research.experiment import Experiment
from research.layers.cores import Linear, taylor


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_copy.of(Linear(taylor), 0.35, num_steps, batch_size)
