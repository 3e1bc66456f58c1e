"""Transformer big on WMT14 en-fr: Vaswani et al. 2017, arXiv:1706.03762, Table 2.

    python -m launch.prepare experiments/seq2seq/transformer_big_wmt14_enfr.py
    python -m launch.train experiments/seq2seq/transformer_big_wmt14_enfr.py

transformer_big_wmt14_ende on 36 million pairs with 32,000 word pieces and a dropout
rate of 0.1.
Published: BLEU 41.8 on newstest2014 (41.0 in the text of section 6.1). Ours: ?
"""

from dataclasses import replace

from experiments.seq2seq import transformer_big_wmt14_ende as big
from research.experiment import Experiment, Published


def experiment(num_steps: int = 300_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        big.experiment(
            num_steps, batch_size, dropout_rate=0.1, vocab_size=32_000, language="fr"
        ),
        num_params=209_051_648,
        published=(Published("bleu/bleu", 41.8, "arXiv:1706.03762, Table 2"),),
    )
