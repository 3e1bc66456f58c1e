"""Norms after the branches, 18 layers a side, on WMT17 en-de: arXiv:2203.00555.

    python -m launch.train experiments/parametrization/postln_wmt17_ende.py

deepnet_wmt17_ende without its constants.
Published: BLEU 28.8 on the test set (Wang et al. 2022, Table 1), 28.1 with 6 layers a
side; with 50 and 100 it diverges. Ours: ?
"""

from functools import partial

from experiments.parametrization import deepnet_wmt17_ende as base
from research.experiment import Experiment
from research.layers.residual import PostNorm


def experiment(num_steps: int = 100_000, batch_size: int = 1024) -> Experiment:
    """The published setting."""
    residual = partial(PostNorm, dropout_rate=base.DROPOUT)
    return base.of(
        18,
        28.8,
        num_steps,
        batch_size,
        num_params=151_248_896,
        residuals=(residual, residual),
    )
