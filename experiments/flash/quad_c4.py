"""FLASH-Quad on C4, filling in subwords: Hua et al. 2022, arXiv:2202.10447.

    python -m launch.prepare experiments/flash/quad_c4.py
    python -m launch.train experiments/flash/quad_c4.py

flash_c4 with attention over the whole row, in time of the square of its length.
Published: no figure here, for want of the paper's own tables. Ours: ?
"""

from experiments.flash import flash_c4
from research.experiment import Experiment
from research.layers.cores.pointwise import Pointwise


def experiment(
    num_steps: int = 125_000, batch_size: int = 512, length: int = 512
) -> Experiment:
    """The base size."""
    block = flash_c4.units(Pointwise())
    return flash_c4.of(block, 24, num_steps, batch_size, length, num_params=112_603_160)
