"""Global attention on WMT14 en-de: Luong et al. 2015, Table 1.

    python -m launch.prepare experiments/seq2seq/luong_wmt14_ende_global.py
    python -m launch.train experiments/seq2seq/luong_wmt14_ende_global.py

luong_wmt14_ende without a window, by scores of places alone, and the next step does not
see what came of it (arXiv:1508.04025).
Published: perplexity 7.3 a word and BLEU 16.8 (tokenized) on newstest2014. Ours: ?
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
            alignment=base.PLACES,
            input_feeding=False,
        ),
        num_params=216_096_000,
        published=base.bleu(16.8),
    )
