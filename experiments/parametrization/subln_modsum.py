"""Sub-LN, 48 layers deep, on sums of three numbers.

    python -m launch.train experiments/parametrization/subln_modsum.py

The setting of preln_modsum with another norm before the last projection of each branch,
and with gains of sqrt(ln 2N) (Wang et al. 2022, arXiv:2210.06423).
Required beforehand: nothing; there was no program before this one.
Ours: 1.813; with 12 layers 1.798.
"""

from experiments.parametrization import postln_modsum
from research.experiment import Experiment
from research.layers import depth
from research.layers.norms import LayerNorm
from research.layers.residual import PreNorm


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
        residual=PreNorm,
        gain=depth.sub_ln(num_layers),
        out_norm=LayerNorm,
        final_norm=LayerNorm,
        num_params=626_496,
    )
