"""Global attention with input feeding on WMT14 en-de: Luong et al. 2015, Table 1.

    python -m launch.prepare experiments/seq2seq/luong_wmt14_ende_feed.py
    python -m launch.train experiments/seq2seq/luong_wmt14_ende_feed.py

luong_wmt14_ende without a window, by scores of places alone (arXiv:1508.04025).
Published: perplexity 6.4 a word and BLEU 18.1 (tokenized) on newstest2014. Ours: ?
"""

from dataclasses import replace

from experiments.seq2seq import luong_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 12 * base.EPOCH, batch_size: int = 128) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(num_steps, batch_size, alignment=base.PLACES),
        num_params=220_096_000,
        published=base.bleu(18.1),
    )
