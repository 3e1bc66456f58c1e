"""Local attention on images of the Long Range Arena: arXiv:2011.04006.

    python -m launch.train experiments/attention/local_lra_image.py

softmax_lra_image with another core, in the sizes that the arena chose for it.
Attention within blocks of 64 positions.
Published: accuracy 41.46 %. Ours: ?
"""

from experiments.attention import softmax_lra_image as base
from research.experiment import Experiment
from research.layers.cores import Block, Sparse


def experiment(num_steps: int = 35_156, batch_size: int = 256) -> Experiment:
    """The published setting."""
    return base.of(
        Sparse(((Block(64),),)),
        41.46,
        num_steps,
        batch_size,
        num_heads=2,
        pooling="mean",
        num_params=248_714,
    )
