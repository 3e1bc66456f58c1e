"""The RefineNets of noise-conditional score networks: NCSN and the three NCSNv2."""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.errors import UserError
from research.layers.norms import InstanceNormPlus
from research.layers.refine import (
    Norm,
    Pool,
    PreActivationBlock,
    RefineBlock,
    average_pool,
    convolve,
    max_pool,
)


class RefineNet(nn.Module):
    """A score network over images in [0, 1].

    Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models",
    arXiv:2006.09011, App. A. The defaults are NCSNv2 for 32 and 64 pixels; `ncsn`,
    `ncsnv2_deeper` and `ncsnv2_deepest` are the other published ones.

    Going down, stage i has two residual blocks of `channels * channel_mults[i]`
    channels. Its first block halves the resolution, unless the stage is dilated or the
    first. Coming back up, a refine block fuses each stage's output with what came from
    the stage below.

    Attributes:
      channels: of the first stage, before its multiple.
      channel_mults: the multiple of each stage, the finest first.
      dilations: of each stage's residual blocks; 1 is none. Of the first stage it is 1.
      norm: of the residual blocks and of the output.
      refine_norm: of the refine blocks; None for none.
      pool: of the refine blocks.
      dtype: of the computation; parameters and norms are float32.
    """

    channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    norm: Norm = InstanceNormPlus
    refine_norm: Norm | None = None
    pool: Pool = max_pool
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width image_channels"],
        t: Float[Array, "batch"],
        train: bool,
    ) -> Float[Array, "batch height width image_channels"]:
        """The network's output, float32, shaped like `x`.

        It is the score itself for `ncsn`. The others' score is the output divided by
        the level's standard deviation, which is the task's to do.

        Args:
          x: images around [0, 1].
          t: the index of each image's noise level, which norms with levels read.
          train: changes nothing: there is no dropout.

        Raises:
          UserError: stages and dilations do not go together, or height or width cannot
            be halved as often as the stages ask for.
        """
        del train
        self._check(*x.shape[1:3])
        level = jnp.round(t).astype(jnp.int32)
        num_stages = len(self.channel_mults)
        widths = [self.channels * mult for mult in self.channel_mults]

        h = convolve(2 * x - 1, self.channels, "conv_in", self.dtype)
        stages = []
        for stage in range(num_stages):
            for i in range(2):
                h = PreActivationBlock(
                    widths[stage],
                    opens_stage=stage > 0 and i == 0,
                    dilation=self.dilations[stage],
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{i}",
                )(h, level)
            stages.append(h)

        below: list[Array] = []
        for stage in reversed(range(num_stages)):
            h = RefineBlock(
                widths[max(stage - 1, 0)],
                num_out_units=3 if stage == 0 else 1,
                pool=self.pool,
                norm=self.refine_norm,
                dtype=self.dtype,
                name=f"refine_{stage}",
            )([stages[stage], *below], level)
            below = [h]

        h = nn.elu(self.norm(dtype=self.dtype, name="norm_out")(h, level))
        return convolve(h, x.shape[-1], "conv_out", self.dtype).astype(jnp.float32)

    def _check(self, height: int, width: int) -> None:
        if len(self.dilations) != len(self.channel_mults) or self.dilations[:1] != (1,):
            raise UserError(
                f"dilations {self.dilations} do not fit channel_mults"
                f" {self.channel_mults}: give one for each stage, the first of them 1."
            )
        num_halvings = sum(dilation == 1 for dilation in self.dilations[1:])
        if height % 2**num_halvings or width % 2**num_halvings:
            raise UserError(
                f"images of {height}x{width} cannot be halved {num_halvings} times: use"
                f" multiples of {2**num_halvings}, or dilate more stages."
            )


def ncsn(channels: int = 128, num_levels: int = 10) -> RefineNet:
    """NCSN: every norm knows the noise level, refine blocks have norms, average pools.

    Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data
    Distribution", arXiv:1907.05600, App. A: 30,117,635 parameters on CIFAR-10; 64
    channels for MNIST.
    """
    norm = partial(InstanceNormPlus, num_levels=num_levels)
    return RefineNet(channels, norm=norm, refine_norm=norm, pool=average_pool)


def ncsnv2(channels: int = 128) -> RefineNet:
    """NCSNv2 for 32 and 64 pixels, 29,694,083 parameters."""
    return RefineNet(channels)


def ncsnv2_deeper(channels: int = 128) -> RefineNet:
    """NCSNv2 with five stages, for 96 and 128 pixels."""
    return RefineNet(channels, (1, 2, 2, 4, 4), (1, 1, 1, 2, 4))


def ncsnv2_deepest(channels: int = 128) -> RefineNet:
    """NCSNv2 with six stages, for 256 pixels."""
    return RefineNet(channels, (1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4))
