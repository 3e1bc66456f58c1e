"""Residual networks: convolutional backbones whose maps are of four resolutions."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from research.layers.initializers import VarianceScaling
from research.layers.linear import by_rows
from research.layers.norms import BatchNorm

Norm = Callable[..., nn.Module]
"""Built with `dtype` and `name`, called with maps and `train`."""


class FrozenBatchNorm(nn.Module):
    """A batch normalisation that has done its learning: a line for each channel.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, in float32 whatever the compute
    dtype. All four are constants, in the collection `frozen`: no gradient is taken of
    them, and neither an optimizer nor a decay nor an average sees them. That is how a
    pretrained backbone is trained on batches too small for moments of their own, and
    they come from that backbone; to begin with, the norm is the identity.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output.
    """

    epsilon: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], train: bool = False
    ) -> Float[Array, "*batch channels"]:
        def constant(name: str, init: Callable[..., Array]) -> Array:
            leaf = self.variable("frozen", name, init, x.shape[-1:])
            return jnp.asarray(leaf.value, jnp.float32)

        mean, var = constant("mean", jnp.zeros), constant("var", jnp.ones)
        scale, bias = constant("scale", jnp.ones), constant("bias", jnp.zeros)
        scale = scale * jax.lax.rsqrt(var + self.epsilon)
        bias = bias - mean * scale
        shape = (1,) * (x.ndim - 1) + scale.shape
        x = x.astype(jnp.float32) * scale.reshape(shape) + bias.reshape(shape)
        return x.astype(self.dtype)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, the second of a quarter of the channels.

    He et al. 2016, arXiv:1512.03385, Figure 5, right. The stride is that of the 3x3
    convolution, as in every released port, and not of the first one.

    Attributes:
      channels: of the output.
      stride: of the output's pixels among the input's.
      dilation: of the 3x3 convolution.
      norm: after each convolution.
      dtype: of the computation.
    """

    channels: int
    stride: int = 1
    dilation: int = 1
    norm: Norm = BatchNorm
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        def step(h: Array, size: int, number: int) -> Array:
            h = _conv(
                self.channels if number == 2 else self.channels // 4,
                size,
                self.stride if size == 3 else 1,
                self.dilation if size == 3 else 1,
                dtype=self.dtype,
                name=f"conv_{number}",
            )(h)
            return self.norm(dtype=self.dtype, name=f"norm_{number}")(h, train)

        h = nn.relu(step(x, 1, 0))
        h = nn.relu(step(h, 3, 1))
        h = step(h, 1, 2)
        if self.stride > 1 or x.shape[-1] != self.channels:
            skip = _conv(self.channels, 1, self.stride, dtype=self.dtype, name="skip")
            x = self.norm(dtype=self.dtype, name="skip_norm")(skip(x), train)
        return nn.relu(x + h)


class ResNet(nn.Module):
    """The maps of an image after each of four stages, a backbone without a head.

    He et al. 2016, arXiv:1512.03385, Table 1: ResNet-50, and 101 with `depths` of
    (3, 4, 23, 3). With the strides of 4, 8, 16 and 32 a map has height / stride rows,
    rounded up.

    Attributes:
      depths: blocks of each stage.
      channels: of the stem, and a quarter of those that the first stage puts out; each
        further one puts out twice as many.
      output_stride: the largest stride: stages that would go beyond it are dilated
        instead (16 is DC5: Carion et al. 2020, arXiv:2005.12872, section 4). The first
        block of such a stage still has the dilation of the one before.
      norm: after each convolution; `FrozenBatchNorm` where batches are too small.
      dtype: of the computation.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    channels: int = 64
    output_stride: int = 32
    norm: Norm = BatchNorm
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width colors"], train: bool = False
    ) -> tuple[Float[Array, "batch ..."], ...]:
        x = _conv(self.channels, 7, 2, dtype=self.dtype, name="stem")(image)
        x = nn.relu(self.norm(dtype=self.dtype, name="stem_norm")(x, train))
        margin = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), margin)  # pyright: ignore
        maps, reached, dilation = [], 4, 1
        for stage, depth in enumerate(self.depths):
            stride, first = (2 if stage else 1), dilation
            if reached * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            for block in range(depth):
                x = Bottleneck(
                    4 * self.channels * 2**stage,
                    stride=1 if block else stride,
                    dilation=dilation if block else first,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x, train)
            maps.append(x)
        return tuple(maps)


def _conv(
    channels: int,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    dtype: str,
    name: str,
) -> nn.Module:
    """With zeros around the image, the same on both sides, and no bias."""
    init = VarianceScaling(2.0, "fan_out", "normal")
    if size == 1:
        return PointConv(channels, stride, kernel_init=init, dtype=dtype, name=name)
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=dilation * (size // 2),
        kernel_dilation=dilation,
        use_bias=False,
        kernel_init=init,
        dtype=dtype,
        name=name,
    )


class PointConv(nn.Module):
    """A 1x1 convolution without a bias, of every `stride`-th row and column.

    As a product of matrices: for the gradient of its kernel XLA would turn the images
    inside out, which on CPUs takes longer than all the rest.

    Attributes:
      features: channels of the output.
      stride: in pixels, both ways.
      kernel_init: of the kernel, (1, 1, channels, features).
      dtype: of the computation.
    """

    features: int
    stride: int
    kernel_init: Initializer
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = x[:, :: self.stride, :: self.stride].astype(self.dtype)
        return by_rows(x, jnp.asarray(kernel, self.dtype)[0, 0])
