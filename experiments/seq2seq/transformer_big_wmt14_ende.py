"""Transformer big on WMT14 en-de: Vaswani et al. 2017, arXiv:1706.03762, Table 2.

    python -m launch.train experiments/seq2seq/transformer_big_wmt14_ende.py
    python -m launch.evaluate runs/transformer_big_wmt14_ende --average-last 20

transformer_base_wmt14_ende at twice its width, with 16 heads, a dropout rate of 0.3 and
300,000 steps.
Published: BLEU 28.4 on newstest2014, from the mean of the last 20 checkpoints, 10
minutes apart; on newstest2013 perplexity 4.33 and BLEU 26.4 (Table 3). 1.0 s a step,
3.5 days on 8 P100. Ours: ?
Parameters: 213 million in the paper, 214 million here.
"""

from dataclasses import replace

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.experiment import Experiment, Published
from research.train.checkpoints import Checkpoints


def experiment(
    num_steps: int = 300_000,
    batch_size: int = 96,
    dropout_rate: float = 0.3,
    vocab_size: int = 37_000,
    language: str = "de",
) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(
            num_steps,
            batch_size,
            embed_dim=1024,
            mlp_dim=4096,
            num_heads=16,
            dropout_rate=dropout_rate,
            vocab_size=vocab_size,
            language=language,
        ),
        checkpoints=Checkpoints(every=600, keep_last=20),
        num_params=214_171_648,
        published=(
            Published("bleu/bleu", 28.4, f"{base.SOURCE}, Table 2"),
            *base.dev(4.33, 26.4),
        ),
    )
