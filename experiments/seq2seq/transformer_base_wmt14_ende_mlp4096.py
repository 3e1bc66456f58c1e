"""Transformer base with feed-forward layers of 4096: Vaswani et al. 2017, Table 3 (C).

    python -m launch.train experiments/seq2seq/transformer_base_wmt14_ende_mlp4096.py

transformer_base_wmt14_ende but for that (arXiv:1706.03762).
Published: perplexity 4.75 a word piece and BLEU 26.2 on newstest2013, by a beam of
4 with alpha 0.6, without a mean of checkpoints. Ours: ?
Parameters: 90 million in the paper.
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 100_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(num_steps, batch_size, mlp_dim=4096),
        num_params=88_236_032,
        published=base.dev(4.75, 26.2),
    )
