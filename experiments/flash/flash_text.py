"""FLASH models text byte by byte.

    python -m launch.train experiments/flash/flash_text.py

softmax_text of the family attention with gated attention units (Hua et al. 2022,
arXiv:2202.10447), two for each of its layers: chunks of 64 bytes, linear attention
across them, queries and keys of 64 dimensions that turn by their positions.
Required beforehand: below 3.0 bits a byte on the files held out.
Ours: 2.225
"""

from functools import partial

import flax.linen as nn

from experiments.attention import softmax_text
from research.experiment import Experiment
from research.layers.cores import Core, Softmax
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.gated import GatedAttentionUnit
from research.layers.positions import Rotary
from research.layers.stack import TransformerBlock


def experiment(
    num_steps: int = 600, batch_size: int = 16, path: str = ""
) -> Experiment:
    """A few minutes on two CPU cores."""
    return of(MixedChunk(chunk_size=64), num_steps, batch_size, path)


def of(
    core: Core, num_steps: int, batch_size: int, path: str, num_params: int = 865_200
) -> Experiment:
    """The setting that all siblings share, with another core."""
    unit = partial(
        GatedAttentionUnit,
        expansion=1.84,  # of as many parameters
        key_dim=64,
        core=core,
        rotary=Rotary(),
        scale_init=nn.initializers.ones,
    )
    return softmax_text.of(
        Softmax(),  # in no block
        num_steps,
        batch_size,
        path,
        block=partial(TransformerBlock, mixer=unit, mlp=None),
        num_layers=8,
        num_params=num_params,
    )
