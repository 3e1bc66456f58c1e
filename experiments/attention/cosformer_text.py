"""cosFormer models text byte by byte.

    python -m launch.train experiments/attention/cosformer_text.py

softmax_text with the core of Qin et al. 2022, arXiv:2202.08791.
Required beforehand: below 3.0 bits a byte on the files held out.
Ours: ?
"""

from experiments.attention import softmax_text
from research.experiment import Experiment
from research.layers.cores import CosFormer


def experiment(
    num_steps: int = 600, batch_size: int = 16, path: str = ""
) -> Experiment:
    """A few minutes on two CPU cores."""
    return softmax_text.of(CosFormer(max_length=256), num_steps, batch_size, path)
