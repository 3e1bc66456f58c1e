"""GNMT on WMT14 en-fr, its first 60,000 steps: Wu et al. 2016, arXiv:1609.08144.

    python -m launch.prepare experiments/seq2seq/gnmt_wmt14_enfr_adam.py
    python -m launch.train experiments/seq2seq/gnmt_wmt14_enfr_adam.py

gnmt_wmt14_ende_adam on 36 million pairs, with a dropout rate of 0.2; gnmt_wmt14_enfr
goes on from here. Published: nothing of these steps alone. Ours: ?
Differs: as gnmt_wmt14_ende_adam.
"""

from dataclasses import replace

from experiments.seq2seq import gnmt_wmt14_ende_adam as base
from research.experiment import Experiment


def experiment(num_steps: int = 60_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(
            num_steps, batch_size, dropout_rate=0.2, language="fr", words=29
        ),
        num_params=280_826_880,
    )
