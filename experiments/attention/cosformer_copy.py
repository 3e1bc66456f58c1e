"""CosFormer copies a word.

    python -m launch.train experiments/attention/cosformer_copy.py

softmax_copy with the core of Qin et al. 2022, arXiv:2202.08791.
Required beforehand: an accuracy of at least 0.75.
Ours: 0.999
"""

from experiments.attention import softmax_copy
from research.experiment import Experiment
from research.layers.cores import CosFormer


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """A minute or two on a CPU core."""
    return softmax_copy.of(CosFormer(max_length=50), 0.75, num_steps, batch_size)
