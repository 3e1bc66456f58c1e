"""Changes of an image's resolution that have no parameters."""

from collections.abc import Callable

import einops
from jaxtyping import Array, Float

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
