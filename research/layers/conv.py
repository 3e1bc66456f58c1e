"""Changes of an image's resolution that have no parameters."""

from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Resample = Callable[[Array], Array]
"""Images (batch, height, width, channels) to another height and width."""


def mean_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch half_height half_width channels"]:
    """The mean of each 2x2 block of pixels; height and width must be even."""
    return einops.reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)


def nearest_upsample(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch double_height double_width channels"]:
    """Each pixel becomes a 2x2 block."""
    return einops.repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)


def nearest_resize(
    x: Shaped[Array, "batch height width channels"], height: int, width: int
) -> Shaped[Array, "batch new_height new_width channels"]:
    """Of each axis, new pixel i is the old one at i times old / new size, rounded down.

    As PyTorch's `interpolate` by default: the first corners, not the centres, coincide.
    """

    def places(old: int, new: int) -> np.ndarray:
        # float32, as there: on which side of a border a pixel falls is a rounding.
        ratio = np.float32(old) / np.float32(new)
        index = np.floor(np.arange(new, dtype=np.float32) * ratio)
        return np.minimum(index.astype(np.int32), old - 1)

    return x[:, places(x.shape[1], height)][:, :, places(x.shape[2], width)]


def fir_downsample(
    x: Float[Array, "batch height width channels"],
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0),
) -> Float[Array, "batch half_height half_width channels"]:
    """Filters by `taps` along both axes and keeps every second pixel.

    Zhang 2019, arXiv:1904.11486, aligned as in Karras et al. 2020, arXiv:1912.04958,
    official code. Zeros surround the image; a constant stays what it is, but at the
    borders. Height and width must be even.
    """
    margin = len(taps) - 2
    return _filter(x, taps, padding=((margin + 1) // 2, margin // 2), stride=2)


def fir_upsample(
    x: Float[Array, "batch height width channels"],
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0),
) -> Float[Array, "batch double_height double_width channels"]:
    """Puts zeros between pixels and filters by `taps` along both axes.

    It is the transpose of `fir_downsample`, times the 4 that makes up for the zeros: a
    constant stays what it is, but at the borders.
    """
    margin = len(taps) - 2
    padding = ((margin + 1) // 2 + 1, margin // 2 + 1)
    return _filter(x, taps, padding, dilation=2, gain=4.0)


def fir_blur(
    x: Float[Array, "batch height width channels"],
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0),
) -> Float[Array, "batch new_height new_width channels"]:
    """Filters by `taps` and leaves one pixel more in height and width.

    A 3x3 convolution with stride 2 and no padding then halves what was an even height
    and width (Karras et al. 2020, arXiv:1912.04958, official code).
    """
    return _filter(x, taps, padding=((len(taps) + 1) // 2, len(taps) // 2))


def _filter(
    x: Array,
    taps: tuple[float, ...],
    padding: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
    gain: float = 1.0,
) -> Array:
    """One depthwise convolution by the outer product of the taps, their sum `gain`."""
    # Turned around: the library's convolution is a correlation.
    kernel = np.outer(taps, taps)[::-1, ::-1] * (gain / sum(taps) ** 2)
    channels = x.shape[-1]
    return jax.lax.conv_general_dilated(
        x,
        jnp.tile(jnp.asarray(kernel, x.dtype)[..., None, None], channels),
        window_strides=(stride, stride),
        padding=(padding, padding),
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )
