"""Transformer base with 8 layers on each side: Vaswani et al. 2017, Table 3 (C).

    python -m launch.train experiments/seq2seq/transformer_base_wmt14_ende_layers8.py

transformer_base_wmt14_ende but for that (arXiv:1706.03762).
Published: perplexity 4.88 a word piece and BLEU 25.5 on newstest2013, by a beam of
4 with alpha 0.6, without a mean of checkpoints. Ours: ?
Parameters: 80 million in the paper.
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 100_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(num_steps, batch_size, num_layers=8),
        num_params=77_746_176,
        published=base.dev(4.88, 25.5),
    )
