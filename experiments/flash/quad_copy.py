"""FLASH-Quad copies a word: gated attention units in the place of Transformer layers.

    python -m launch.train experiments/flash/quad_copy.py

The task, data and schedule of softmax_copy of the family attention, with four gated
attention units (Hua et al. 2022, arXiv:2202.10447): two stand for attention and a
feed-forward layer. Queries and keys of 32 dimensions turn by their positions.
Differs: scales of queries and keys start at one, not around zero, since at this
size there is no time to grow them; and kernels at 0.07, which gives to a width of 64
the variances that 0.02 gives to 768. With 0.02 the accuracy is 0.439.
Required beforehand: an accuracy of at least 0.98.
Ours: 1.0
"""

from dataclasses import replace
from functools import partial

import flax.linen as nn

from experiments.attention import softmax_copy
from research.experiment import Experiment, Required
from research.layers.cores import Core
from research.layers.cores.pointwise import Pointwise
from research.layers.gated import GatedAttentionUnit
from research.layers.initializers import Normal
from research.layers.positions import Rotary
from research.layers.stack import TransformerBlock


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """About a minute on a CPU core."""
    return of(Pointwise(), 0.98, num_steps, batch_size)


def of(
    core: Core, above: float, num_steps: int, batch_size: int, num_params: int = 113_152
) -> Experiment:
    """The setting that all siblings share, with another core and its requirement."""
    base = softmax_copy.experiment(num_steps, batch_size)
    unit = partial(
        GatedAttentionUnit,
        expansion=2.0,
        key_dim=32,
        core=core,
        rotary=Rotary(),
        kernel_init=Normal(0.07),
        scale_init=nn.initializers.ones,
    )
    network = base.task.network
    body = replace(
        network.body,
        num_layers=4,
        blocks=(partial(TransformerBlock, mixer=unit, mlp=None),),
    )
    return replace(
        base,
        task=replace(base.task, network=replace(network, body=body)),
        num_params=num_params,
        required=(Required("test/accuracy", above=above),),
    )
