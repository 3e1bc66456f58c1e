"""No norm at all, 48 layers deep, on sums of three numbers: it explodes.

    python -m launch.train experiments/parametrization/plain_modsum.py

The setting of postln_modsum without norms and without anything in their place: the
stream's second moment grows by a factor a layer, and neither loss nor gradient is a
number to learn from. Steps that are not finite are skipped, to the end.
Required beforehand: a held-out loss above 100 nats after 160 steps, chance being 2.079.
Ours: 1e+10; with 12 layers 469.
"""

from dataclasses import replace

from experiments.parametrization import postln_modsum
from research.experiment import Experiment, Required
from research.layers.residual import Plain


def experiment(
    num_layers: int = 48,
    embed_dim: int = 32,
    num_steps: int = 160,
    batch_size: int = 64,
) -> Experiment:
    """A minute or two on a CPU core."""
    base = postln_modsum.of(
        num_layers,
        embed_dim,
        num_steps,
        batch_size,
        residual=Plain,
        required=Required("test/loss", above=100.0),
        num_params=604_928,
    )
    return replace(base, on_nonfinite="skip")
