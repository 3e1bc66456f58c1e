"""Transformer base with feed-forward layers of 1024: Vaswani et al. 2017, Table 3 (C).

    python -m launch.train experiments/seq2seq/transformer_base_wmt14_ende_mlp1024.py

transformer_base_wmt14_ende but for that (arXiv:1706.03762).
Published: perplexity 5.12 a word piece and BLEU 25.4 on newstest2013, by a beam of
4 with alpha 0.6, without a mean of checkpoints. Ours: ?
Parameters: 53 million in the paper.
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 100_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(num_steps, batch_size, mlp_dim=1024),
        num_params=50_450_432,
        published=base.dev(5.12, 25.4),
    )
