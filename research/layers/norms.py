"""Normalisation of activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.errors import UserError


class GroupNorm(nn.Module):
    """Normalises groups of channels over all pixels (Wu & He 2018, arXiv:1803.08494).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, the moments over the pixels and
    channels of a group, one example at a time, in float32 whatever the compute dtype.

    Attributes:
      max_groups: the number of groups, where groups are large enough.
      min_group_size: fewer groups rather than groups of fewer channels.
      epsilon: added to the variance.
      dtype: of the output.
    """

    max_groups: int = 32
    min_group_size: int = 4
    epsilon: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Raises `UserError` if the groups cannot have equally many channels."""
        batch, _, _, channels = x.shape
        num_groups = min(self.max_groups, channels // self.min_group_size)
        if num_groups == 0 or channels % num_groups:
            raise UserError(
                f"{channels} channels cannot be split into {num_groups} equal groups:"
                f" use a multiple of {self.min_group_size} up to"
                f" {self.max_groups * self.min_group_size} channels, of"
                f" {self.max_groups} above."
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def group_mean(per_channel: Array) -> Array:
            groups = per_channel.reshape(batch, num_groups, -1).mean(-1)
            return jnp.repeat(groups, channels // num_groups, axis=-1)

        # Pixels are summed before channels: both passes over x, and those over its
        # gradient, then reduce to one number a channel, which vectorises everywhere.
        x = x.astype(jnp.float32)
        mean = group_mean(x.mean((1, 2)))
        var = group_mean(jnp.square(x).mean((1, 2))) - jnp.square(mean)
        scale = scale[None] * jax.lax.rsqrt(jnp.maximum(var, 0) + self.epsilon)
        bias = bias[None] - mean * scale
        return (x * scale[:, None, None] + bias[:, None, None]).astype(self.dtype)
