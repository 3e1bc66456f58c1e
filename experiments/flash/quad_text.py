"""FLASH-Quad models text byte by byte.

    python -m launch.train experiments/flash/quad_text.py

flash_text with attention over the whole window (Hua et al. 2022, arXiv:2202.10447).
Required beforehand: below 3.0 bits a byte on the files held out.
Ours: ?
"""

from experiments.flash import flash_text
from research.experiment import Experiment
from research.layers.cores.pointwise import Pointwise


def experiment(
    num_steps: int = 600, batch_size: int = 16, path: str = ""
) -> Experiment:
    """A few minutes on two CPU cores."""
    return flash_text.of(Pointwise(), num_steps, batch_size, path, num_params=863_152)
