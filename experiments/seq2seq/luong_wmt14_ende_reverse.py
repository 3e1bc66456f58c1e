"""A deep LSTM that reads in reverse on WMT14 en-de: Luong et al. 2015, Table 1.

    python -m launch.prepare experiments/seq2seq/luong_wmt14_ende_reverse.py
    python -m launch.train experiments/seq2seq/luong_wmt14_ende_reverse.py

luong_wmt14_ende but for attention and dropout (arXiv:1508.04025).
Published: perplexity 9.9 a word and BLEU 12.6 (tokenized) on newstest2014. Ours: ?
"""

from dataclasses import replace

from experiments.seq2seq import luong_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 10 * base.EPOCH, batch_size: int = 128) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(
            num_steps,
            batch_size,
            dropout_rate=0.0,
            alignment=None,
            input_feeding=False,
        ),
        num_params=214_032_000,
        published=base.bleu(12.6),
    )
