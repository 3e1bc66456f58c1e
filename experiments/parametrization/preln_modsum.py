"""Pre-LN, 48 layers deep, on sums of three numbers.

    python -m launch.train experiments/parametrization/preln_modsum.py

The setting of postln_modsum with the norms inside of the branches (Xiong et al. 2020,
arXiv:2002.04745). The stream grows with every layer, so that later ones matter less.
Required beforehand: a held-out loss below 2.02 nats after 160 steps, chance being
2.079.
Ours: 1.895; with 12 layers 1.858.
"""

from experiments.parametrization import postln_modsum
from research.experiment import Experiment, Required
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
        required=Required("test/loss", below=2.02),
        final_norm=LayerNorm,
        num_params=611_136,
    )
