"""Linear attention models text byte by byte.

    python -m launch.train experiments/attention/linear_text.py

softmax_text with the core of Katharopoulos et al. 2020,
arXiv:2006.16236.
Required beforehand: below 3.0 bits a byte on the files held out.
Ours: 3.290, which falls short.
"""

from experiments.attention import softmax_text
from research.experiment import Experiment
from research.layers.cores import Linear


def experiment(
    num_steps: int = 600, batch_size: int = 16, path: str = ""
) -> Experiment:
    """A few minutes on two CPU cores."""
    return softmax_text.of(Linear(), num_steps, batch_size, path)
