"""muP: the parametrization in which a learning rate found narrow is right wide, too.

Yang et al. 2022, arXiv:2203.03466, "Tensor Programs V", Tables 3 and 8, for Adam. With
w the width over the base width, at which everything is as usual:

| parameters                          | initial variance  | Adam's rate | multiplier |
|-------------------------------------|-------------------|-------------|------------|
| kernels from width to width         | 1 / fan in        | 1 / w       |            |
| embeddings, biases, norms' scales   | that of the base  | 1           |            |
| kernel of the logits, tied or not   | that of the base  | 1           | 1 / w      |
| attention's logits, head dim d      |                   |             | ~ 1 / d    |

    parts = mup(width=1024, base_width=128, head_dim=64, base_head_dim=64)
    network = LanguageModel(
        body=Stack(...),  # of Attention(core=Softmax(scale=parts.attention_scale))
        logit_scale=parts.logit_scale,
        logits_init=parts.logits_init,
        ...
    )
    optimizer = Adam(schedule, multipliers=parts.multipliers)
"""

import math
from dataclasses import dataclass

from jax.nn.initializers import Initializer

from research.errors import UserError
from research.layers.initializers import Normal

IN_STACKS = r"layers/.*kernel$"
"""The kernels from width to width of a `research.layers.stack.Stack`."""


@dataclass(frozen=True)
class AttentionScale:
    """sqrt(base) / head dim: 1 / head dim, but 1 / sqrt(head dim) at the base."""

    base_head_dim: int

    def __call__(self, head_dim: int) -> float:
        return math.sqrt(self.base_head_dim) / head_dim


@dataclass(frozen=True)
class Mup:
    """What depends on the width, for the slots of a network and of Adam.

    Attributes:
      multipliers: of `Adam`.
      attention_scale: of `Softmax`.
      logit_scale: of `LanguageModel` and `EncoderDecoder`.
      logits_init: of the same, for untied logits; zeros do as well, and bring the wide
        to agree with the narrow from the first step.
    """

    multipliers: tuple[tuple[str, float], ...]
    attention_scale: AttentionScale
    logit_scale: float
    logits_init: Initializer


def mup(
    width: int,
    base_width: int,
    *,
    head_dim: int = 64,
    base_head_dim: int = 64,
    hidden: str = IN_STACKS,
) -> Mup:
    """The parts of muP for a width.

    Args:
      width: of the stream; every width within the blocks is in proportion to it.
      base_width: where the learning rate was found.
      head_dim: of attention; for the check that it is in proportion, or fixed.
      base_head_dim: the same at the base width.
      hidden: pattern of the paths of all kernels from width to width.

    Raises:
      UserError: sizes that are not positive, or a head that grows otherwise.
    """
    sizes = (width, base_width, head_dim, base_head_dim)
    if min(sizes) < 1:
        raise UserError(f"mup of widths and head dims {sizes}: expected positive ones")
    ratio = width / base_width
    if head_dim != base_head_dim and head_dim / base_head_dim != ratio:
        raise UserError(
            f"head_dim={head_dim} is neither {base_head_dim}, as at the base width, nor"
            f" {ratio:g} times as large, as the width: choose one of the two"
        )
    return Mup(
        multipliers=((hidden, 1 / ratio),),
        attention_scale=AttentionScale(base_head_dim),
        logit_scale=1 / ratio,
        logits_init=Normal(base_width**-0.5),
    )
