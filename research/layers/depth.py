"""What makes deep Transformers trainable: constants by the number of layers.

A stack has N layers, of two branches each (attention, feed-forward), or of three with
cross attention. Where the norm goes, and what scales the stream, is a slot of
`research.layers.residual`; here is by how much, and from what the branches start:

    scales = depth.deepnorm(48)
    block = partial(
        TransformerBlock,
        mixer=partial(Attention, num_heads=4, **depth.attention_inits(scales.gain)),
        mlp=partial(FeedForward, mlp_dim=128, **depth.mlp_inits(scales.gain)),
        residual=partial(PostNorm, skip_scale=scales.skip),
    )
"""

import math
from dataclasses import dataclass

from jax.nn.initializers import Initializer

from research.layers.initializers import xavier


@dataclass(frozen=True)
class Scales:
    """Two constants of a residual branch.

    Attributes:
      skip: what multiplies the stream before the branch is added and the norm taken.
      gain: of the initial kernels of values, outputs and feed-forward layers, as a
        multiple of Xavier's. Queries and keys keep 1: the softmax bounds what they do.
    """

    skip: float
    gain: float


# DeepNorm (Wang et al. 2022, arXiv:2203.00555, Table 1): the expected update of the
# whole model is bounded whatever its depth.


def deepnorm(num_layers: int) -> Scales:
    """An encoder, or a decoder, alone: (2N)^(1/4) and (8N)^(-1/4)."""
    return Scales(skip=(2 * num_layers) ** 0.25, gain=(8 * num_layers) ** -0.25)


def deepnorm_pair(encoder_layers: int, decoder_layers: int) -> tuple[Scales, Scales]:
    """An encoder with N layers, and the decoder with M layers that attends to it."""
    both = (encoder_layers**4 * decoder_layers) ** (1 / 16)
    return (
        Scales(skip=0.81 * both, gain=0.87 / both),
        Scales(skip=(3 * decoder_layers) ** 0.25, gain=(12 * decoder_layers) ** -0.25),
    )


# The same bound for other optimizers (Su 2022, kexue.fm/archives/8978): for a stream
# without norms in it, the same gain with a skip of one.


def sgd_scales(num_layers: int) -> Scales:
    """(2N)^(1/4) and (2N)^(-1/4)."""
    return Scales(skip=(2 * num_layers) ** 0.25, gain=(2 * num_layers) ** -0.25)


def adam_scales(num_layers: int) -> Scales:
    """(2N)^(1/2) and (2N)^(-1/2)."""
    return Scales(skip=(2 * num_layers) ** 0.5, gain=(2 * num_layers) ** -0.5)


def lamb_scales(num_layers: int) -> Scales:
    """1 and (2N)^(-1/2)."""
    return Scales(skip=1.0, gain=(2 * num_layers) ** -0.5)


# Sub-LN (Wang et al. 2022, arXiv:2210.06423, "Magneto"): a norm before each projection
# of a branch's output, too, which is what `out_norm` is for, and larger gains.


def sub_ln(num_layers: int) -> float:
    """The gain of an encoder, or a decoder, alone: sqrt(ln 2N)."""
    return math.sqrt(math.log(2 * num_layers))


def sub_ln_pair(encoder_layers: int, decoder_layers: int) -> tuple[float, float]:
    """The gains of an encoder and of the decoder that attends to it."""
    decoder = math.log(3 * decoder_layers)
    return (
        math.sqrt(decoder * math.log(2 * encoder_layers) / 3),
        math.sqrt(decoder),
    )


# T-Fixup (Huang et al. 2020, "Improving Transformer Optimization Through Better
# Initialization"): neither norms nor warm-up. Its code starts queries and keys with a
# gain of 1/sqrt(2), and embeddings of variance 1/dim, times `tfixup_cross`, which are
# then multiplied by sqrt(dim).

TFIXUP_QUERY_GAIN = math.sqrt(0.5)
"""Of queries and keys."""


def tfixup(num_layers: int) -> float:
    """The gain of an encoder: 0.67 N^(-1/4)."""
    return 0.67 * num_layers**-0.25


def tfixup_cross(num_layers: int) -> float:
    """The gain of a decoder with cross attention, and of embeddings: (9N)^(-1/4)."""
    return (9 * num_layers) ** -0.25


# Fixup (Zhang et al. 2019, arXiv:1901.09321)


def fixup(num_branches: int, branch_layers: int) -> float:
    """The gain of all layers of a branch but the last, which starts at zero.

    L^(-1 / (2m - 2)) for L branches of m layers each; there are scalars around each
    branch, too: `Plain(fixup=True)`.
    """
    return num_branches ** (-1 / (2 * branch_layers - 2))


# Initializers for the slots of a block


def attention_inits(gain: float, query_gain: float = 1.0) -> dict[str, Initializer]:
    """Keywords of `Attention`: values and outputs have `gain`, queries and keys not."""
    return {
        "kernel_init": xavier(query_gain),
        "value_init": xavier(gain),
        "out_init": xavier(gain),
    }


def mlp_inits(gain: float) -> dict[str, Initializer]:
    """Keywords of `FeedForward`."""
    return {"kernel_init": xavier(gain)}
