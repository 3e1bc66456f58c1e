"""Transformer base with 256 dimensions, 32 a head: Vaswani et al. 2017, Table 3 (C).

    python -m launch.train experiments/seq2seq/transformer_base_wmt14_ende_dim256.py

transformer_base_wmt14_ende but for that (arXiv:1706.03762).
Published: perplexity 5.75 a word piece and BLEU 24.5 on newstest2013, by a beam of
4 with alpha 0.6, without a mean of checkpoints. Ours: ?
Parameters: 28 million in the paper.
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 100_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(
            num_steps, batch_size, embed_dim=256, head_dim=32, value_dim=32
        ),
        num_params=26_816_512,
        published=base.dev(5.75, 24.5),
    )
