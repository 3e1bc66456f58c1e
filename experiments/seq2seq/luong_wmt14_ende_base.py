"""A deep LSTM without attention on WMT14 en-de: Luong et al. 2015, Table 1.

    python -m launch.prepare experiments/seq2seq/luong_wmt14_ende_base.py
    python -m launch.train experiments/seq2seq/luong_wmt14_ende_base.py

luong_wmt14_ende but for attention, dropout and the order of the source
(arXiv:1508.04025).
Published: perplexity 10.6 a word and BLEU 11.3 (tokenized) on newstest2014. Ours: ?
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
            reverse_source=False,
            dropout_rate=0.0,
            alignment=None,
            input_feeding=False,
        ),
        num_params=214_032_000,
        published=base.bleu(11.3),
    )
