"""The wide residual network, told how noisy its image is."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from research.errors import UserError
from research.layers.dropout import Dropout
from research.layers.embeddings import FourierEmbedding
from research.layers.linear import Dense
from research.layers.norms import GroupNorm

_he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class WideResNet(nn.Module):
    """Classifies images at any noise level.

    Zagoruyko & Komodakis 2016, arXiv:1605.07146: norm, relu, convolution, norm, relu,
    dropout, convolution, plus the input, in three groups of `(depth - 4) / 6` blocks
    with 16, 32 and 64 times `width` channels, the second and third of half the height.
    WRN-28-10, as the defaults are, is published with 36.5 million parameters, to which
    the noise level adds its own: every block adds a projection of it after the first
    convolution (Song et al. 2021, arXiv:2011.13456, App. I, steer their samples by such
    a classifier).

    Differs: group instead of batch normalization, whose statistics would mix the noise
    levels of a batch.

    Attributes:
      num_classes: how many logits.
      depth: convolutions on the path, the projections left out: 6 n + 4.
      width: the multiple of 16 channels.
      dropout_rate: between the convolutions of a block.
      norm: built with `dtype` and `name`.
      time_embedding: built with 64, its width or half of it, and `name`; called with t.
      data_range: what the input's values are without noise, mapped to [-1, 1].
      dtype: of the computation; parameters, norms and logits are float32.
    """

    num_classes: int = 10
    depth: int = 28
    width: int = 10
    dropout_rate: float = 0.0
    norm: Callable[..., nn.Module] = GroupNorm
    time_embedding: Callable[..., nn.Module] = partial(FourierEmbedding, scale=16.0)
    data_range: tuple[float, float] = (-1.0, 1.0)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width image_channels"],
        t: Float[Array, "batch"],
        train: bool,
    ) -> Float[Array, "batch classes"]:
        """The logits, float32.

        `t` is the time, the noise level or what else `time_embedding` takes. In
        training it draws from the `dropout` rng.

        Raises:
          UserError: a depth that is not 6 n + 4.
        """
        num_blocks, rest = divmod(self.depth - 4, 6)
        if rest or num_blocks < 1:
            raise UserError(
                f"depth={self.depth}: expected 6 n + 4, such as 10, 16 or 28"
            )

        def conv(x: Array, channels: int, name: str, size: int = 3, stride: int = 1):
            return nn.Conv(
                channels,
                (size, size),
                strides=(stride, stride),
                padding=[(size // 2, size // 2)] * 2,
                use_bias=False,
                kernel_init=_he,
                dtype=self.dtype,
                name=name,
            )(x)

        def normed(x: Array, name: str) -> Array:
            return nn.relu(self.norm(dtype=self.dtype, name=name)(x))

        def dense(x: Array, features: int, name: str) -> Array:
            return Dense(features, dtype=self.dtype, name=name)(x)

        def block(x: Array, channels: int, stride: int, name: str) -> Array:
            h = normed(x, f"{name}_norm_0")
            if x.shape[-1] != channels or stride > 1:
                x = conv(h, channels, f"{name}_skip", size=1, stride=stride)
            h = conv(h, channels, f"{name}_conv_0", stride=stride)
            h += dense(time, channels, f"{name}_time")[:, None, None]
            h = normed(h, f"{name}_norm_1")
            h = Dropout(self.dropout_rate, name=f"{name}_dropout")(h, train)
            return x + conv(h, channels, f"{name}_conv_1")

        low, high = self.data_range
        x = (2 * x - (low + high)) / (high - low)

        time = self.time_embedding(64, name="time_embedding")(t)
        time = nn.swish(dense(nn.swish(dense(time, 128, "time_hidden")), 128, "time"))

        h = conv(x, 16, "conv_in")
        for group in range(3):
            for index in range(num_blocks):
                stride = 2 if group and not index else 1
                channels = 16 * 2**group * self.width
                h = block(h, channels, stride, f"group_{group}_block_{index}")
        h = normed(h, "norm_out").mean((1, 2))
        return Dense(self.num_classes, name="logits")(h)
