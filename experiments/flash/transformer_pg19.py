"""The improved Transformer that FLASH is compared with, on PG-19.

    python -m launch.prepare experiments/flash/transformer_pg19.py
    python -m launch.train experiments/flash/transformer_pg19.py

flash_pg19 with the blocks of transformer_wiki40b.
Published: FLASH has its quality in up to 12.1 times less training time (Hua et al.
2022, arXiv:2202.10447, abstract). Ours: ?
"""

from experiments.flash import flash_wiki40b as base
from research.experiment import Experiment
from research.layers.cores import Softmax


def experiment(
    num_steps: int = 100_000, batch_size: int = 32, length: int = 8192
) -> Experiment:
    """The base size."""
    return base.of(
        Softmax(),
        num_steps,
        batch_size,
        length,
        num_params=109_644_288,
        corpus="pg19",
        part="book_text",
        sample="train[:1%]",
        block=base.improved(Softmax()),
        num_layers=12,
    )
