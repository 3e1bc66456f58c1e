"""Norms before the branches, 18 layers a side, on WMT17 en-de: arXiv:2203.00555.

    python -m launch.train experiments/parametrization/preln_wmt17_ende.py

deepnet_wmt17_ende without its constants, and the stream normalised once, at the end.
Published: BLEU 28.0 on the test set (Wang et al. 2022, Table 1), 27.0 with 6 layers a
side, 27.4 with 50 and with 100. Ours: ?
"""

from functools import partial

from experiments.parametrization import deepnet_wmt17_ende as base
from research.experiment import Experiment
from research.layers.norms import LayerNorm
from research.layers.residual import PreNorm


def experiment(num_steps: int = 100_000, batch_size: int = 1024) -> Experiment:
    """The published setting."""
    residual = partial(PreNorm, dropout_rate=base.DROPOUT)
    return base.of(
        18,
        28.0,
        num_steps,
        batch_size,
        num_params=151_250_944,
        residuals=(residual, residual),
        final_norm=LayerNorm,
    )
