"""Transformer base with learnt positions: Vaswani et al. 2017, Table 3 (E).

    python -m launch.train experiments/seq2seq/transformer_base_wmt14_ende_learned.py

transformer_base_wmt14_ende but for that (arXiv:1706.03762).
Published: perplexity 4.92 a word piece and BLEU 25.7 on newstest2013, by a beam of
4 with alpha 0.6, without a mean of checkpoints. Ours: ?
Parameters: 65 million in the paper, as the base.
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment
from research.layers.positions import Learned


def experiment(num_steps: int = 100_000, batch_size: int = 96) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(num_steps, batch_size, positions=Learned(max_length=256)),
        num_params=63_176_704,
        published=base.dev(4.92, 25.7),
    )
