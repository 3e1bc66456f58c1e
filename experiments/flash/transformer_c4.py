"""The improved Transformer that FLASH is compared with, on C4, filling in subwords.

    python -m launch.prepare experiments/flash/transformer_c4.py
    python -m launch.train experiments/flash/transformer_c4.py

flash_c4 with the blocks of transformer_wiki40b, 12 of them.
Published: FLASH has its quality in up to 4.8 times less training time (Hua et al. 2022,
arXiv:2202.10447, abstract). Ours: ?
"""

from functools import partial

import jax

from experiments.flash import flash_c4
from research.experiment import Experiment
from research.layers.attention import Attention
from research.layers.cores import Softmax
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.positions import Rotary
from research.layers.stack import TransformerBlock


def experiment(
    num_steps: int = 125_000, batch_size: int = 512, length: int = 512
) -> Experiment:
    """The base size."""
    kernel = Normal(0.02)
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=12,
            core=Softmax(),
            rotary=Rotary(),
            kernel_init=kernel,
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=2048,
            activation=jax.nn.silu,
            gated=True,
            kernel_init=kernel,
        ),
    )
    return flash_c4.of(block, 12, num_steps, batch_size, length, num_params=110_268_416)
