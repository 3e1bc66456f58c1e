"""FLASH on text8.

    python -m launch.train experiments/flash/flash_text8.py

Needs the file text8 (mattmahoney.net/dc/text8.zip) at ~/data/twelvefold/text8.
flash_enwik8 on another text.
Published: no figure. Ours: ?
"""

from experiments.flash import flash_enwik8
from research.experiment import Experiment


def experiment(num_steps: int = 100_000, batch_size: int = 16) -> Experiment:
    """As on enwik8."""
    return flash_enwik8.experiment(num_steps, batch_size, "text8")
