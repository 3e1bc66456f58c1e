"""The improved Transformer that FLASH is compared with, on English Wiki-40B.

    python -m launch.prepare experiments/flash/transformer_wiki40b.py
    python -m launch.train experiments/flash/transformer_wiki40b.py

flash_wiki40b with 12 layers of softmax attention by rotated queries and keys, and gated
feed-forward layers: the Transformer++ of Hua et al. 2022, arXiv:2202.10447.
Published: FLASH has its quality in up to 4.9 times less training time (abstract); of
perplexities there is no figure here, for want of the paper's own tables. Ours: ?
Differs: heads and widths are our own, for as many parameters.
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
        block=base.improved(Softmax()),
        num_layers=12,
    )
