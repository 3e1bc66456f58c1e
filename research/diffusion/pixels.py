"""Pixels: between the integer levels of stored images and a density's real numbers."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8


@dataclass(frozen=True)
class Pixels:
    """Images of `levels` integer levels, 0 to levels-1, as reals from `low` to `high`.

    Plain, level k is the point k/(levels-1) of the range. With `dequantize` it is a
    uniform draw from the k-th of `levels` equal bins, so that a density over the reals
    bounds the probability of the levels (Theis et al. 2016, arXiv:1511.01844).
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0
    dequantize: bool = False

    def to_data(
        self, image: UInt8[Array, "batch ..."], rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch ..."]:
        """Levels to reals; `rng` is needed to dequantize and unused otherwise."""
        level = image.astype(jnp.float32)
        if self.dequantize:
            if rng is None:
                raise ValueError("Pixels with dequantize=True need a key, got none.")
            unit = (level + jax.random.uniform(rng, image.shape)) / self.levels
        else:
            unit = level / (self.levels - 1)
        return self.low + (self.high - self.low) * unit

    def to_levels(self, x: Float[Array, "batch ..."]) -> UInt8[Array, "batch ..."]:
        """Reals to the level that they came from, 0 to levels-1; clips to the range.

        Differs: the official code truncates 255 x, which takes many levels one down.
        """
        unit = (x - self.low) / (self.high - self.low)
        if self.dequantize:
            level = jnp.floor(unit * self.levels)
        else:
            level = jnp.round(unit * (self.levels - 1))
        return jnp.clip(level, 0, self.levels - 1).astype(jnp.uint8)

    def to_image(self, x: Float[Array, "batch ..."]) -> UInt8[Array, "batch ..."]:
        """Reals to their level, stretched to 0..255 for display."""
        stretched = self.to_levels(x) * (255 / (self.levels - 1))
        return jnp.round(stretched).astype(jnp.uint8)

    def bits_per_dim(
        self, log_likelihood: Float[Array, "batch"], num_dims: int
    ) -> Float[Array, "batch"]:
        """Bits per dimension of the levels, from nats of the dequantized reals.

        The offset log2(levels / (high - low)) is the size of one bin: 7 bits for 256
        levels on [-1, 1] and 8 on [0, 1].
        """
        offset = math.log2(self.levels / (self.high - self.low))
        return offset - log_likelihood / (num_dims * math.log(2))
