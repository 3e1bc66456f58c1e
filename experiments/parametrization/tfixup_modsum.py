"""T-Fixup, 48 layers deep, on sums of three numbers.

    python -m launch.train experiments/parametrization/tfixup_modsum.py

The setting of postln_modsum without norms, from an initialisation that bounds the
update: an encoder's rule, two branches a layer (Huang et al. 2020, official code).
Required beforehand: a held-out loss below 2.02 nats after 160 steps, chance being
2.079.
Ours: 1.890; with 12 layers 1.894.
"""

from experiments.parametrization import postln_modsum
from research.experiment import Experiment, Required
from research.layers import depth
from research.layers.residual import Plain


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
        residual=Plain,
        required=Required("test/loss", below=2.02),
        gain=depth.tfixup(num_layers),
        query_gain=depth.TFIXUP_QUERY_GAIN,
        embedding_gain=depth.tfixup_cross(num_layers),
        num_params=604_928,
    )
