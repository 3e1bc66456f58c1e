"""GNMT on WMT14 en-fr: Wu et al. 2016, arXiv:1609.08144.

    python -m launch.prepare experiments/seq2seq/gnmt_wmt14_enfr.py
    python -m launch.train experiments/seq2seq/gnmt_wmt14_enfr.py

gnmt_wmt14_ende on 36 million pairs, with a dropout rate of 0.2, from the run of
gnmt_wmt14_enfr_adam.
Published: BLEU 38.95 on newstest2014 by a single model, with a beam of 3, in 6 days on
96 K80; refined by reinforcement learning, which is not here, 39.92. Ours: ?
Differs: as gnmt_wmt14_ende, for French sentences of 29 words.
"""

from dataclasses import replace

from experiments.seq2seq import gnmt_wmt14_ende as base
from research.experiment import Experiment, Published


def experiment(
    num_steps: int = 2_000_000 - base.BEFORE,
    batch_size: int = 128,
    model: str = "runs/gnmt_wmt14_enfr_adam",
) -> Experiment:
    """The published setting; `model` is the workdir of the first steps."""
    return replace(
        base.experiment(
            num_steps, batch_size, model, dropout_rate=0.2, language="fr", words=29
        ),
        num_params=280_826_880,
        published=(Published("bleu/bleu", 38.95, "arXiv:1609.08144"),),
    )
