"""Residual blocks of convolutional networks, and what stands between their levels."""

import math
import operator
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.conv import (
    Resample,
    fir_blur,
    fir_downsample,
    fir_upsample,
    nearest_upsample,
)
from research.layers.dropout import Dropout
from research.layers.initializers import uniform_fan_avg
from research.layers.linear import Dense
from research.layers.norms import GroupNorm

pointwise_conv = partial(nn.Conv, kernel_size=(1, 1), kernel_init=uniform_fan_avg())


class BigGANBlock(nn.Module):
    """The residual block of BigGAN, conditioned on time.

    Brock et al. 2019, arXiv:1809.11096, App. B, as Song et al. 2021, arXiv:2011.13456,
    App. H use it: norm, swish, [resample], convolution, + time; norm, swish, dropout,
    convolution; plus the input, resampled alike.

    Attributes:
      channels: of the output.
      resample: changes height and width on both paths; None keeps them.
      dropout_rate: before the second convolution.
      skip_scale: of the sum. 1/sqrt(2) keeps the variance ("skip rescale", App. H).
      skip: the projection of the input where a channel count or the resolution changes,
        built with `channels`, `dtype` and `name`.
      norm: before either convolution, built with `dtype` and `name`.
      dtype: of the computation; parameters and norms are float32.
    """

    channels: int
    resample: Resample | None = None
    dropout_rate: float = 0.1
    skip_scale: float = math.sqrt(0.5)
    skip: Callable[..., nn.Module] = pointwise_conv
    norm: Callable[..., nn.Module] = GroupNorm
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in_channels"],
        time: Float[Array, "batch time_dim"],
        train: bool,
    ) -> Float[Array, "batch new_height new_width channels"]:
        def conv(x: Array, name: str, init_scale: float = 1.0) -> Array:
            return nn.Conv(
                self.channels,
                (3, 3),
                dtype=self.dtype,
                kernel_init=uniform_fan_avg(init_scale),
                name=name,
            )(x)

        h = nn.swish(self.norm(dtype=self.dtype, name="norm1")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h, "conv1")
        shift = Dense(
            self.channels,
            dtype=self.dtype,
            kernel_init=uniform_fan_avg(),
            name="time",
        )(nn.swish(time))
        h = h + shift[:, None, None]

        h = nn.swish(self.norm(dtype=self.dtype, name="norm2")(h))
        h = Dropout(self.dropout_rate)(h, train)
        h = conv(h, "conv2", init_scale=0.0)

        if self.resample is not None or x.shape[-1] != self.channels:
            x = self.skip(self.channels, dtype=self.dtype, name="skip")(x)
        return ((x + h) * self.skip_scale).astype(self.dtype)


def ddpm_block(
    channels: int,
    resample: Callable[..., nn.Module] | None = None,
    dropout_rate: float = 0.1,
    norm: Callable[..., nn.Module] = GroupNorm,
    dtype: str = "float32",
    name: str | None = None,
) -> nn.Module:
    """DDPM's residual block or, where `resample` is given, that in its place.

    Ho et al. 2020, arXiv:2006.11239, App. B: sums are not rescaled, and a lone
    convolution, `StridedConv` or `NearestConv`, stands between levels.

    Args:
      channels: of the output.
      resample: built with `channels`, `dtype` and `name`, called like a block.
      dropout_rate, norm, dtype: as of `BigGANBlock`.
      name: of the module, and so of its parameters.
    """
    if resample is not None:
        return resample(channels, dtype=dtype, name=name)
    return BigGANBlock(
        channels,
        dropout_rate=dropout_rate,
        skip_scale=1.0,
        # A tenth of the variance: Song et al. 2021, arXiv:2011.13456, official code.
        skip=partial(Dense, kernel_init=uniform_fan_avg(0.1)),
        norm=norm,
        dtype=dtype,
        name=name,
    )


class StridedConv(nn.Module):
    """A 3x3 convolution with stride 2, for even height and width.

    Called like a block, it reads neither the time nor whether it is trained.

    Attributes:
      channels: of the output.
      padding: zeros before and after the pixels of both axes. (0, 1) is "SAME" padding,
        DDPM's; (1, 1) is symmetric.
      dtype: of the computation; parameters are float32.
    """

    channels: int
    padding: tuple[int, int] = (0, 1)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in_channels"],
        time: Float[Array, "batch time_dim"],
        train: bool,
    ) -> Float[Array, "batch half_height half_width channels"]:
        return nn.Conv(
            self.channels,
            (3, 3),
            strides=2,
            padding=(self.padding, self.padding),
            dtype=self.dtype,
            kernel_init=uniform_fan_avg(),
            name="conv",
        )(x)


class NearestConv(nn.Module):
    """Each pixel becomes a 2x2 block; then a 3x3 convolution.

    Called like a block, it reads neither the time nor whether it is trained.

    Attributes:
      channels: of the output.
      dtype: of the computation; parameters are float32.
    """

    channels: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in_channels"],
        time: Float[Array, "batch time_dim"],
        train: bool,
    ) -> Float[Array, "batch double_height double_width channels"]:
        return nn.Conv(
            self.channels,
            (3, 3),
            dtype=self.dtype,
            kernel_init=uniform_fan_avg(),
            name="conv",
        )(nearest_upsample(x))


class ResidualPyramid(nn.Module):
    """Shows the input to a level again: the pyramid, convolved, joins the features.

    Song et al. 2021, arXiv:2011.13456, App. H, progressive growing of the input,
    "residual": the sum is at once the next features and the next pyramid.

    Attributes:
      channels: of the features and of the new pyramid.
      blur: before the convolution with stride 2; leaves one pixel more.
      scale: of the sum; 1/sqrt(2) keeps the variance.
      dtype: of the computation; parameters are float32.
    """

    channels: int
    blur: Resample = fir_blur
    scale: float = math.sqrt(0.5)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pyramid: Float[Array, "batch double_height double_width pyramid_channels"],
        h: Float[Array, "batch height width channels"],
    ) -> tuple[
        Float[Array, "batch height width channels"],
        Float[Array, "batch height width channels"],
    ]:
        """The pyramid at the features' resolution, and the features with it."""
        pyramid = nn.Conv(
            self.channels,
            (3, 3),
            strides=2,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=uniform_fan_avg(),
            name="residual",
        )(self.blur(pyramid))
        h = ((pyramid + h) * self.scale).astype(self.dtype)
        return h, h


class InputSkip(nn.Module):
    """Shows the input to a level again: the image, smaller, is added to the features.

    Karras et al. 2020, arXiv:1912.04958, section 4.1, as Song et al. 2021,
    arXiv:2011.13456, App. H use it: a 1x1 convolution takes it to the features.

    Attributes:
      channels: of the features.
      downsample: from one level's image to the next one's.
      combine: the convolved image and the features; their sum, or `concatenate`.
      dtype: of the computation; parameters are float32.
    """

    channels: int
    downsample: Resample = fir_downsample
    combine: Callable[[Array, Array], Array] = operator.add
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pyramid: Float[Array, "batch double_height double_width image_channels"],
        h: Float[Array, "batch height width channels"],
    ) -> tuple[
        Float[Array, "batch height width image_channels"],
        Float[Array, "batch height width new_channels"],
    ]:
        """The image at the features' resolution, and the features with it."""
        pyramid = self.downsample(pyramid)
        image = pointwise_conv(self.channels, dtype=self.dtype, name="combine")(pyramid)
        return pyramid, self.combine(image, h).astype(self.dtype)


def concatenate(
    image: Float[Array, "batch height width image_channels"],
    h: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width new_channels"]:
    """Both, one after the other along the channels."""
    return jnp.concatenate([image, h], axis=-1)


class ResidualOutput(nn.Module):
    """Carries the features of a level to the next finer one, beside its blocks.

    Song et al. 2021, arXiv:2011.13456, App. H, progressive growing of the output,
    "residual": the pyramid, twice as large, is convolved and joins the features.

    Attributes:
      channels: of the features and of the new pyramid.
      upsample: before the convolution.
      scale: of the sum; 1/sqrt(2) keeps the variance.
      dtype: of the computation; parameters are float32.
    """

    channels: int
    upsample: Resample = fir_upsample
    scale: float = math.sqrt(0.5)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pyramid: Float[Array, "batch half_height half_width pyramid_channels"],
        h: Float[Array, "batch height width channels"],
    ) -> Float[Array, "batch height width channels"]:
        """The features with the pyramid, which are also the next pyramid."""
        # The convolution sees what the filter spreads by a pixel beyond the image.
        pyramid = self.upsample(jnp.pad(pyramid, ((0, 0), (1, 1), (1, 1), (0, 0))))
        pyramid = nn.Conv(
            self.channels,
            (3, 3),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=uniform_fan_avg(),
            name="residual",
        )(pyramid[:, 1:-1, 1:-1])
        return ((pyramid + h) * self.scale).astype(self.dtype)
