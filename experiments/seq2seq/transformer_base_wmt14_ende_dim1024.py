"""Transformer base with 1024 dimensions, 128 a head: Vaswani et al. 2017, Table 3 (C).

    python -m launch.train experiments/seq2seq/transformer_base_wmt14_ende_dim1024.py

transformer_base_wmt14_ende but for that (arXiv:1706.03762).
Published: perplexity 4.66 a word piece and BLEU 26.0 on newstest2013, by a beam of
4 with alpha 0.6, without a mean of checkpoints. Ours: ?
Parameters: 168 million in the paper.
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 100_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(
            num_steps, batch_size, embed_dim=1024, head_dim=128, value_dim=128
        ),
        num_params=163_815_424,
        published=base.dev(4.66, 26.0),
    )
