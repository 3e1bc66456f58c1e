"""FLASH on PG-19, books before 1919: Hua et al. 2022, arXiv:2202.10447.

    python -m launch.prepare experiments/flash/flash_pg19.py
    python -m launch.train experiments/flash/flash_pg19.py

flash_wiki40b on another corpus, whose subwords are made from one book in a hundred.
Published: the quality of an improved Transformer in up to 12.1 times less training time
(abstract); of perplexities there is no figure here, for want of the paper's own tables.
Ours: ?
"""

from experiments.flash import flash_wiki40b as base
from research.experiment import Experiment
from research.layers.cores.mixed_chunk import MixedChunk


def experiment(
    num_steps: int = 100_000, batch_size: int = 32, length: int = 8192
) -> Experiment:
    """The base size."""
    return base.of(
        MixedChunk(chunk_size=256),
        num_steps,
        batch_size,
        length,
        num_params=111_991_320,
        corpus="pg19",
        part="book_text",
        sample="train[:1%]",
    )
