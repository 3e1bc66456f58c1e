"""FLASH-Quad on PG-19: Hua et al. 2022, arXiv:2202.10447.

    python -m launch.prepare experiments/flash/quad_pg19.py
    python -m launch.train experiments/flash/quad_pg19.py

flash_pg19 with attention over the whole row, in time of the square of its length.
Published: no figure here, for want of the paper's own tables. Ours: ?
"""

from experiments.flash import flash_wiki40b as base
from research.experiment import Experiment
from research.layers.cores.pointwise import Pointwise


def experiment(
    num_steps: int = 100_000, batch_size: int = 32, length: int = 8192
) -> Experiment:
    """The base size."""
    return base.of(
        Pointwise(),
        num_steps,
        batch_size,
        length,
        num_params=111_979_032,
        corpus="pg19",
        part="book_text",
        sample="train[:1%]",
    )
