"""Attention."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from research.errors import UserError
from research.layers.initializers import uniform_fan_avg
from research.layers.norms import GroupNorm

Core = Callable[[Array, Array, Array], Array]
"""Query, key and value, each (batch, length, heads, head dim), to an output alike."""


class PixelAttention(nn.Module):
    """Residual self-attention over all pixels of an image.

    Ho et al. 2020, arXiv:2006.11239, App. B, with the rescaled sum of Song et al. 2021,
    arXiv:2011.13456, App. H.

    Attributes:
      num_heads: divides the channels.
      head_dim: of as many heads as the channels make, whatever `num_heads` is; None is
        for `num_heads` of them.
      core: mixes the values; by default softmax(q k / sqrt(head dim)) v, the softmax
        in float32.
      skip_scale: of the sum of input and output; 1/sqrt(2) keeps the variance.
      norm: of the input, built with `dtype` and `name`.
      dtype: of the computation; parameters, norm and softmax are float32.
    """

    num_heads: int = 1
    head_dim: int | None = None
    core: Core = jax.nn.dot_product_attention
    skip_scale: float = math.sqrt(0.5)
    norm: Callable[..., nn.Module] = GroupNorm
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Raises `UserError` if the heads do not divide the channels."""
        batch, height, width, channels = x.shape
        head_dim = self.head_dim or channels // self.num_heads
        num_heads = channels // head_dim if self.head_dim else self.num_heads
        if num_heads * head_dim != channels:
            raise UserError(
                f"{channels} channels cannot be split over {num_heads} heads of"
                f" {head_dim}: choose num_heads, or head_dim, that divides them."
            )

        def project(h: Array, name: str, init_scale: float) -> Array:
            return nn.Dense(
                channels,
                dtype=self.dtype,
                kernel_init=uniform_fan_avg(init_scale),
                name=name,
            )(h)

        h = self.norm(dtype=self.dtype, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        # The official code starts query, key and value at a tenth of the variance.
        query, key, value = (
            project(h, name, 0.1).reshape(batch, height * width, num_heads, head_dim)
            for name in ("query", "key", "value")
        )
        h = self.core(query, key, value).reshape(batch, height, width, channels)
        h = project(h, "out", 0.0)
        return ((x + h) * self.skip_scale).astype(self.dtype)
