"""Local attention on text of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/local_lra_text.py

softmax_lra_text with another core.
Attention within blocks of 50 positions.
Published: accuracy 52.98 %. Ours: ?
"""

from experiments.attention import softmax_lra_text as base
from research.experiment import Experiment
from research.layers.cores import Block, Sparse


def experiment(num_steps: int = 20_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(((Block(50),),)), 52.98, num_steps, batch_size, num_params=3_487_234
    )
