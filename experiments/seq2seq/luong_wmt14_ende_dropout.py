"""A deep LSTM with dropout on WMT14 en-de: Luong et al. 2015, Table 1.

    python -m launch.prepare experiments/seq2seq/luong_wmt14_ende_dropout.py
    python -m launch.train experiments/seq2seq/luong_wmt14_ende_dropout.py

luong_wmt14_ende but for attention (arXiv:1508.04025).
Published: perplexity 8.1 a word and BLEU 14.0 (tokenized) on newstest2014. Ours: ?
"""

from dataclasses import replace

from experiments.seq2seq import luong_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 12 * base.EPOCH, batch_size: int = 128) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(
            num_steps,
            batch_size,
            alignment=None,
            input_feeding=False,
        ),
        num_params=214_032_000,
        published=base.bleu(14.0),
    )
