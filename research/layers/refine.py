"""RefineNet's parts: residual blocks going down, refinement coming back up.

Lin et al. 2017, "RefineNet: Multi-Path Refinement Networks", arXiv:1611.06612, as the
noise-conditional networks of Song & Ermon use them (2019, arXiv:1907.05600, App. A;
2020, arXiv:2006.09011, App. A): ELU throughout, and a norm that may know the level.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.layers.conv import mean_pool
from research.layers.norms import InstanceNormPlus

Norm = Callable[..., nn.Module]
"""Built with `dtype` and `name`, called with x and the level of each example."""

Pool = Callable[[Array], Array]
"""Images (batch, height, width, channels) to images of the same shape."""


def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """The largest of the 5x5 pixels around each, as far as the image goes."""
    return nn.max_pool(x, (5, 5), padding="SAME")


def average_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """The mean of the 5x5 pixels around each, zeros beyond the border included."""
    return nn.avg_pool(x, (5, 5), padding="SAME")


def resize(
    x: Float[Array, "batch height width channels"], height: int, width: int
) -> Float[Array, "batch new_height new_width channels"]:
    """Bilinear, the centres of the corner pixels staying corners.

    New pixel i is taken at the old position i (old - 1) / (new - 1).
    """
    if x.shape[1:3] == (height, width):
        return x
    rows = jnp.asarray(_interpolation(x.shape[1], height), x.dtype)
    columns = jnp.asarray(_interpolation(x.shape[2], width), x.dtype)
    x = jnp.einsum("bhwc,yh->bywc", x, rows)
    return jnp.einsum("bywc,xw->byxc", x, columns)


def _interpolation(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Row i holds the weights of the old pixels in new pixel i."""
    position = np.linspace(0, old - 1, new)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old)[None]))


def convolve(
    x: Float[Array, "batch height width in_channels"],
    channels: int,
    name: str,
    dtype: str,
    size: int = 3,
    dilation: int = 1,
    use_bias: bool = True,
) -> Float[Array, "batch height width channels"]:
    """A convolution of the module that calls this, with zeros around the image.

    Kernel and bias start uniform within 1 / sqrt(fan in): PyTorch's default, which the
    official code keeps.
    """
    bound = (size**2 * x.shape[-1]) ** -0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Conv(
        channels,
        (size, size),
        kernel_dilation=dilation,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=uniform,
        bias_init=uniform,
        name=name,
    )(x)


def _norm(norm: Norm | None, x: Array, level: Array, name: str, dtype: str) -> Array:
    return x if norm is None else norm(dtype=dtype, name=name)(x, level)


class PreActivationBlock(nn.Module):
    """norm, ELU, convolution, twice, plus the input (He et al. 2016, arXiv:1603.05027).

    Attributes:
      channels: of the output.
      opens_stage: whether this is the first block of a stage, where channels and
        resolution may change. It halves the resolution, or, where it is dilated,
        keeps it; either way its input takes a convolution to the sum.
      dilation: of its 3x3 convolutions.
      norm: before each of the two.
      dtype: of the computation; parameters and norms are float32.
    """

    channels: int
    opens_stage: bool = False
    dilation: int = 1
    norm: Norm = InstanceNormPlus
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in_channels"],
        level: Int[Array, "batch"],
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Raises `UserError` for a change of channels that does not open a stage."""
        in_channels = x.shape[-1]
        if in_channels != self.channels and not self.opens_stage:
            raise UserError(
                f"a block of {self.channels} channels cannot add its input of"
                f" {in_channels}: only one that opens a stage changes them"
            )

        def conv(x: Array, channels: int, name: str) -> Array:
            return convolve(x, channels, name, self.dtype, dilation=self.dilation)

        h = nn.elu(_norm(self.norm, x, level, "norm1", self.dtype))
        h = conv(h, in_channels, "conv1")
        h = nn.elu(_norm(self.norm, h, level, "norm2", self.dtype))
        h = conv(h, self.channels, "conv2")
        if not self.opens_stage:
            return x + h
        if self.dilation > 1:
            return conv(x, self.channels, "skip") + h
        # The skip's 1x1 convolution commutes with the pool, and costs a quarter after.
        skip = convolve(mean_pool(x), self.channels, "skip", self.dtype, size=1)
        return skip + mean_pool(h)


class ResidualConvUnit(nn.Module):
    """[norm], ELU, 3x3 convolution without bias, twice, plus the input (Fig. 3b).

    Attributes:
      norm: before each activation; None for none.
      dtype: of the computation; parameters and norms are float32.
    """

    norm: Norm | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        level: Int[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        h = x
        for i in (1, 2):
            h = nn.elu(_norm(self.norm, h, level, f"norm{i}", self.dtype))
            h = convolve(h, x.shape[-1], f"conv{i}", self.dtype, use_bias=False)
        return x + h


class MultiScaleFusion(nn.Module):
    """The sum of images brought to the size of the first (Fig. 3c).

    Each goes through [norm], 3x3 convolution and `resize`.

    Attributes:
      channels: of the output.
      norm: before each convolution; None for none.
      dtype: of the computation; parameters and norms are float32.
    """

    channels: int
    norm: Norm | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        xs: Sequence[Float[Array, "batch _height _width _in_channels"]],
        level: Int[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        _, height, width, _ = xs[0].shape
        fused = []
        for i, x in enumerate(xs):
            h = _norm(self.norm, x, level, f"norm_{i}", self.dtype)
            h = convolve(h, self.channels, f"conv_{i}", self.dtype)
            fused.append(resize(h, height, width))
        return reduce(jnp.add, fused)


class ChainedResidualPooling(nn.Module):
    """ELU, plus two links of [norm], pool, 3x3 convolution without bias (Fig. 3d).

    The second link continues the first; both are added to the activation.

    Attributes:
      pool: of each link.
      norm: before each pool; None for none.
      dtype: of the computation; parameters and norms are float32.
    """

    pool: Pool = max_pool
    norm: Norm | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        level: Int[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        x = link = nn.elu(x)
        for i in range(2):
            link = self.pool(_norm(self.norm, link, level, f"norm_{i}", self.dtype))
            link = convolve(link, x.shape[-1], f"conv_{i}", self.dtype, use_bias=False)
            x = x + link
        return x


class RefineBlock(nn.Module):
    """Two residual units on each input, fusion, pooling, residual units (Fig. 3a).

    A single input is not fused: it keeps its channels.

    Attributes:
      channels: of the output.
      num_out_units: residual units after the pooling.
      pool: of the chained pooling.
      norm: before every convolution or pool; None for none.
      dtype: of the computation; parameters and norms are float32.
    """

    channels: int
    num_out_units: int = 1
    pool: Pool = max_pool
    norm: Norm | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        xs: Sequence[Float[Array, "batch _height _width _in_channels"]],
        level: Int[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        """Images of the first one's size."""

        def unit(x: Array, name: str) -> Array:
            return ResidualConvUnit(self.norm, self.dtype, name=name)(x, level)

        adapted = [
            unit(unit(x, f"adapt_{i}_0"), f"adapt_{i}_1") for i, x in enumerate(xs)
        ]
        if len(adapted) == 1:
            (h,) = adapted
        else:
            fusion = MultiScaleFusion(
                self.channels, self.norm, self.dtype, name="fusion"
            )
            h = fusion(adapted, level)
        h = ChainedResidualPooling(self.pool, self.norm, self.dtype, name="pooling")(
            h, level
        )
        for i in range(self.num_out_units):
            h = unit(h, f"out_{i}")
        return h
