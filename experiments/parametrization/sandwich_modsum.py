"""Sandwich norms, 48 layers deep, on sums of three numbers.

    python -m launch.train experiments/parametrization/sandwich_modsum.py

The setting of preln_modsum with another norm behind each branch (Ding et al. 2021,
arXiv:2105.13290, section 2.4).
Required beforehand: nothing; there was no program before this one.
Ours: 1.873; with 12 layers 1.827.
"""

from experiments.parametrization import postln_modsum
from research.experiment import Experiment
from research.layers.norms import LayerNorm
from research.layers.residual import Sandwich


def experiment(
    num_layers: int = 48,
    embed_dim: int = 32,
    num_steps: int = 160,
    batch_size: int = 64,
) -> Experiment:
    """A minute or two on a CPU core."""
    return postln_modsum.of(
        num_layers,
        embed_dim,
        num_steps,
        batch_size,
        residual=Sandwich,
        final_norm=LayerNorm,
        num_params=617_280,
    )
