"""Pre-LN with branches over sqrt(2N), 48 layers deep, on sums of three numbers.

    python -m launch.train experiments/parametrization/preln_scaled_modsum.py

The setting of preln_modsum with every branch divided by the root of how many there are,
so that the stream keeps its variance; GPT-2 has this factor in its initialisation.
Required beforehand: a held-out loss below 2.02 nats after 160 steps, chance being
2.079.
Ours: 1.857; with 12 layers 1.838.
"""

from functools import partial

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
        residual=partial(PreNorm, branch_scale=(2 * num_layers) ** -0.5),
        required=Required("test/loss", below=2.02),
        final_norm=LayerNorm,
        num_params=611_136,
    )
