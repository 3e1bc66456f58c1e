"""Transformer base on WMT14 en-fr: Vaswani et al. 2017, arXiv:1706.03762, Table 2.

    python -m launch.prepare experiments/seq2seq/transformer_base_wmt14_enfr.py
    python -m launch.train experiments/seq2seq/transformer_base_wmt14_enfr.py

transformer_base_wmt14_ende on 36 million pairs with 32,000 word pieces.
Published: BLEU 38.1 on newstest2014. Ours: ?
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment, Published


def experiment(num_steps: int = 100_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(num_steps, batch_size, vocab_size=32_000, language="fr"),
        num_params=60_485_632,
        published=(Published("bleu/bleu", 38.1, f"{base.SOURCE}, Table 2"),),
    )
