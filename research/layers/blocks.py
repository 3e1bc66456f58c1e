"""Residual blocks of convolutional networks."""

import math

import flax.linen as nn
from jaxtyping import Array, Float

from research.layers.conv import Resample
from research.layers.dropout import Dropout
from research.layers.initializers import uniform_fan_avg
from research.layers.norms import GroupNorm


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
      dtype: of the computation; parameters and norms are float32.
    """

    channels: int
    resample: Resample | None = None
    dropout_rate: float = 0.1
    skip_scale: float = math.sqrt(0.5)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in_channels"],
        time: Float[Array, "batch time_dim"],
        train: bool,
    ) -> Float[Array, "batch new_height new_width channels"]:
        def conv(x: Array, size: int, name: str, init_scale: float = 1.0) -> Array:
            return nn.Conv(
                self.channels,
                (size, size),
                dtype=self.dtype,
                kernel_init=uniform_fan_avg(init_scale),
                name=name,
            )(x)

        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm1")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h, 3, "conv1")
        shift = nn.Dense(
            self.channels,
            dtype=self.dtype,
            kernel_init=uniform_fan_avg(),
            name="time",
        )(nn.swish(time))
        h = h + shift[:, None, None]

        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm2")(h))
        h = Dropout(self.dropout_rate)(h, train)
        h = conv(h, 3, "conv2", init_scale=0.0)

        if self.resample is not None or x.shape[-1] != self.channels:
            x = conv(x, 1, "skip")
        return ((x + h) * self.skip_scale).astype(self.dtype)
