"""A small recurrent network without attention translates Multi30k: a comparison.

    python -m launch.prepare experiments/seq2seq/gru_multi30k.py
    python -m launch.train experiments/seq2seq/gru_multi30k.py

gru_attention_multi30k, but all that the decoder sees of the source, at each word, is
the encoder's last state in each direction (Cho et al. 2014, arXiv:1406.1078).
Required beforehand: BLEU between 10, so that it has learnt at all, and the 25 that
attention has to exceed on the same data in as many steps.
Ours: ?
"""

from dataclasses import replace

from experiments.seq2seq import gru_attention_multi30k as base
from research.experiment import Experiment, Required
from research.layers.alignment import LastState


def experiment(
    num_steps: int = 3000,
    batch_size: int = 128,
    dim: int = 192,
    vocab_size: int = 6000,
    dropout_rate: float = 0.15,
    folder: str = "~/data/twelvefold/multi30k",
) -> Experiment:
    """As with attention."""
    alignment = LastState(bidirectional=True)
    return replace(
        base.experiment(
            num_steps, batch_size, dim, vocab_size, dropout_rate, alignment, folder
        ),
        num_params=2_376_816,
        required=(Required("bleu/bleu", above=10.0, below=25.0),),
    )
