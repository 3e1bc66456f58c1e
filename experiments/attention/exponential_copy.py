"""Linear attention with e^x copies a word.

    python -m launch.train experiments/attention/exponential_copy.py

softmax_copy with the core of Su 2021, kexue.fm/archives/8338.
Required beforehand: an accuracy of at least 0.98.
Ours: 1.0
"""

from experiments.attention import softmax_copy
from research.experiment import Experiment
from research.layers.cores import Linear, exponential


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_copy.of(Linear(exponential), 0.98, num_steps, batch_size)
