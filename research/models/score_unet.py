"""The U-Nets of score-based models: DDPM++ as it stands, its relatives by slots.

DDPM and NCSN++ are other settings of `ScoreUNet`, all of which are published with
Song et al. 2021, arXiv:2011.13456 (App. H); on CIFAR-10,

    ddpm = ScoreUNet(
        num_res_blocks=2,
        block=ddpm_block,
        attention=partial(PixelAttention, skip_scale=1.0),
        downsample=StridedConv,
        upsample=NearestConv,
    )
    ncsnpp = ScoreUNet(
        downsample=fir_downsample,
        upsample=fir_upsample,
        time_embedding=FourierEmbedding,  # of the logarithm of the noise level
        input_pyramid=ResidualPyramid,
        data_range=(0.0, 1.0),
    )

have 35,218,947 and 62,758,915 parameters. For images of 256 pixels and more, NCSN++ has
`input_pyramid=InputSkip, output_skip=fir_upsample` instead. The official code
has also the residual output, `output_skip=ResidualOutput`, and smaller images beside
the features, `input_pyramid=partial(InputSkip, combine=concatenate)`.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeGuard

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.errors import UserError
from research.layers.attention import PixelAttention
from research.layers.blocks import BigGANBlock
from research.layers.conv import mean_pool, nearest_upsample
from research.layers.embeddings import SinusoidalEmbedding
from research.layers.initializers import uniform_fan_avg
from research.layers.linear import Dense
from research.layers.norms import GroupNorm


class ScoreUNet(nn.Module):
    """DDPM++: a U-Net over images that is conditioned on time.

    Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential
    Equations", arXiv:2011.13456, App. H. The defaults are the published CIFAR-10
    network, 61,804,419 parameters; `num_res_blocks=8` is the deep one, 106,632,579.

    Level i works at the input's resolution / 2^i with `channels * channel_mults[i]`
    channels. Going down, every block's output is kept; going up, every block takes one
    of them beside its input.

    Attributes:
      channels: of the first level, before its multiple.
      channel_mults: the multiple of each level, the finest first.
      num_res_blocks: blocks of a level going down; going up there is one more.
      attention_resolutions: the heights that get attention, after each block going
        down, and once after a level's blocks going up.
      attend_every_up_block: going up too, attention follows each block of such a level,
        as in DDPM's own code (Ho et al. 2020, arXiv:2006.11239).
      block: built with `channels`, `dtype`, `name` and, between levels, `resample`;
        called with x, the time vector and `train`.
      attention: built with `dtype` and `name`, called with x.
      downsample, upsample: what a block between levels is given as `resample`.
      norm: before the last convolution, built with `dtype` and `name`.
      time_embedding: built with `channels` and `name`, called with the times.
      input_pyramid: built with the channels of a level, `dtype` and `name` between
        levels going down, called with the last level's pyramid, first the input itself,
        and this one's features; returns both anew. None: the input is seen once.
      output_skip: takes one level's image to the next finer one. Every level then makes
        an image, and their sum is the output. None: the finest level alone makes one,
        as it does where this is a module, such as `ResidualOutput`: built with the
        channels of a level, `dtype` and `name`, it is called with the last level's
        pyramid and this one's features, and returns what is both from there on. The
        first pyramid is a convolution of the coarsest features.
      data_range: what the input's values are without noise, mapped to [-1, 1].
      dtype: of the computation; parameters, norms and softmax are float32.
    """

    channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    attend_every_up_block: bool = False
    block: Callable[..., nn.Module] = BigGANBlock
    attention: Callable[..., nn.Module] = PixelAttention
    downsample: Callable[..., Any] = mean_pool
    upsample: Callable[..., Any] = nearest_upsample
    norm: Callable[..., nn.Module] = GroupNorm
    time_embedding: Callable[..., nn.Module] = SinusoidalEmbedding
    input_pyramid: Callable[..., nn.Module] | None = None
    output_skip: Callable[..., Any] | None = None
    data_range: tuple[float, float] = (-1.0, 1.0)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width image_channels"],
        t: Float[Array, "batch"],
        train: bool,
    ) -> Float[Array, "batch height width image_channels"]:
        """The network's output, float32, shaped like `x`.

        `t` is the time, the noise level or what else `time_embedding` takes.

        In training it draws from the `dropout` rng.

        Raises:
          UserError: height or width cannot be halved between all levels, or attention
            is asked for at a resolution that no level has.
        """
        num_levels = len(self.channel_mults)
        self._check_resolution(*x.shape[1:3])

        def conv(x: Array, channels: int, name: str, init_scale: float = 1.0) -> Array:
            return nn.Conv(
                channels,
                (3, 3),
                dtype=self.dtype,
                kernel_init=uniform_fan_avg(init_scale),
                name=name,
            )(x)

        def dense(x: Array, name: str) -> Array:
            return Dense(
                4 * self.channels,
                dtype=self.dtype,
                kernel_init=uniform_fan_avg(),
                name=name,
            )(x)

        def block(
            x: Array,
            level: int,
            name: str,
            resample: Callable[..., Any] | None = None,
        ) -> Array:
            channels = self.channels * self.channel_mults[level]
            return self.block(channels, resample=resample, dtype=self.dtype, name=name)(
                x, time, train
            )

        def attention(x: Array, name: str) -> Array:
            return self.attention(dtype=self.dtype, name=name)(x)

        def head(h: Array, channels: int, prefix: str, init_scale: float) -> Array:
            h = nn.swish(self.norm(dtype=self.dtype, name=f"{prefix}norm_out")(h))
            return conv(h, channels, f"{prefix}conv_out", init_scale)

        def to_image(h: Array, prefix: str = "") -> Array:
            return head(h, x.shape[-1], prefix, init_scale=0.0).astype(jnp.float32)

        # Exact, and nothing at all where the range is [-1, 1] already.
        low, high = self.data_range
        x = (2 * x - (low + high)) / (high - low)

        time = self.time_embedding(self.channels, name="time_embedding")(t)
        time = dense(nn.swish(dense(time, "time_hidden")), "time_out")

        h = conv(x, self.channels, "conv_in")
        kept = [h]
        pyramid = x

        for level in range(num_levels):
            for i in range(self.num_res_blocks):
                h = block(h, level, f"down_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f"down_{level}_attention_{i}")
                kept.append(h)
            if level < num_levels - 1:
                h = block(h, level, f"down_{level}_resample", self.downsample)
                if self.input_pyramid is not None:
                    pyramid, h = self.input_pyramid(
                        h.shape[-1], dtype=self.dtype, name=f"down_{level}_input"
                    )(pyramid, h)
                kept.append(h)

        h = block(h, num_levels - 1, "mid_block_0")
        h = attention(h, "mid_attention")
        h = block(h, num_levels - 1, "mid_block_1")

        pyramid = image = None
        for level in reversed(range(num_levels)):
            attended = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, kept.pop()], axis=-1)
                h = block(h, level, f"up_{level}_block_{i}")
                if attended and self.attend_every_up_block:
                    h = attention(h, f"up_{level}_attention_{i}")
            if attended and not self.attend_every_up_block:
                h = attention(h, f"up_{level}_attention")
            if _is_module(self.output_skip):
                if pyramid is None:
                    pyramid = head(h, h.shape[-1], f"up_{level}_", init_scale=1.0)
                else:
                    pyramid = h = self.output_skip(
                        h.shape[-1], dtype=self.dtype, name=f"up_{level}_output"
                    )(pyramid, h)
            elif self.output_skip is not None:
                finer = to_image(h, f"up_{level}_")
                image = finer if image is None else finer + self.output_skip(image)
            if level > 0:
                h = block(h, level, f"up_{level}_resample", self.upsample)

        return to_image(h) if image is None else image

    def _check_resolution(self, height: int, width: int) -> None:
        num_levels = len(self.channel_mults)
        factor = 2 ** (num_levels - 1)
        if height % factor or width % factor:
            raise UserError(
                f"images of {height}x{width} cannot be halved {num_levels - 1} times"
                f" for {num_levels} levels: use multiples of {factor}, or fewer"
                " channel_mults."
            )
        levels = [height // 2**level for level in range(num_levels)]
        if unused := set(self.attention_resolutions) - set(levels):
            raise UserError(
                f"attention_resolutions names {sorted(unused)}, but the levels have"
                f" heights {levels}: name some of these, or none."
            )


def _is_module(slot: object) -> TypeGuard[Callable[..., Any]]:
    """Whether a slot is given a linen module to build, not a function to call."""
    return isinstance(getattr(slot, "func", slot), type)
