"""DeepNorm, 48 layers deep, on sums of three numbers.

    python -m launch.train experiments/parametrization/deepnorm_modsum.py

The setting of postln_modsum with its stream scaled up by (2N)^(1/4) and its initial
gains down by (8N)^(-1/4) (Wang et al. 2022, arXiv:2203.00555, Table 1), which has 28.9
BLEU with 100 layers a side where Post-LN diverges with 50.
Required beforehand: a held-out loss below 1.97 nats after 160 steps, chance being
2.079.
Ours: 1.920; with 12 layers 1.922.
"""

from functools import partial

from experiments.parametrization import postln_modsum
from research.experiment import Experiment, Required
from research.layers import depth
from research.layers.residual import PostNorm


def experiment(
    num_layers: int = 48,
    embed_dim: int = 32,
    num_steps: int = 160,
    batch_size: int = 64,
) -> Experiment:
    """A minute or two on a CPU core."""
    scales = depth.deepnorm(num_layers)
    return postln_modsum.of(
        num_layers,
        embed_dim,
        num_steps,
        batch_size,
        residual=partial(PostNorm, skip_scale=scales.skip),
        required=Required("test/loss", below=1.97),
        gain=scales.gain,
    )
