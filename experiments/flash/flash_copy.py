"""FLASH copies a word: chunks of 8 letters, and linear attention across them.

    python -m launch.train experiments/flash/flash_copy.py

quad_copy with another core (Hua et al. 2022, arXiv:2202.10447).
Required beforehand: an accuracy of at least 0.95.
Ours: 0.997
"""

from experiments.flash import quad_copy
from research.experiment import Experiment
from research.layers.cores.mixed_chunk import MixedChunk


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """About a minute on a CPU core."""
    return quad_copy.of(MixedChunk(chunk_size=8), 0.95, num_steps, batch_size, 113_664)
