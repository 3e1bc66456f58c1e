"""A small convolutional backbone."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from research.layers.initializers import VarianceScaling
from research.layers.norms import GroupNorm


class ConvMaps(nn.Module):
    """Maps of an image, each of half the height and width of the one before.

    A 3x3 convolution with a stride of two, then some more that are added to what they
    read, each with a norm and a ReLU: for images that are small, or few. The strides
    are 2, 4, 8 and so on; a map has height / stride rows, rounded up.

    Attributes:
      channels: of each map.
      num_convs: in each, the first included.
      norm: after each convolution, built with `dtype` and `name`.
      dtype: of the computation.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    num_convs: int = 2
    norm: Callable[..., nn.Module] = partial(GroupNorm, max_groups=8)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width colors"], train: bool = False
    ) -> tuple[Float[Array, "batch ..."], ...]:
        x, maps = image, []
        for level, channels in enumerate(self.channels):
            for number in range(self.num_convs):
                name = f"{level}_{number}"
                h = nn.Conv(
                    channels,
                    (3, 3),
                    strides=1 if number else 2,
                    padding=1,
                    use_bias=False,
                    kernel_init=VarianceScaling(2.0, "fan_out", "normal"),
                    dtype=self.dtype,
                    name=f"conv_{name}",
                )(x)
                h = nn.relu(self.norm(dtype=self.dtype, name=f"norm_{name}")(h))
                x = x + h if number else h
            maps.append(x)
        return tuple(maps)
