"""Normalisation of activations."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

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


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps how the channels' means differ.

    InstanceNorm++ of Song & Ermon 2019, arXiv:1907.05600, App. A.1. With m and v the
    mean and variance of a channel over the pixels of one example,

        y = ((x - m) / sqrt(v + epsilon) + mean_scale * n) * scale + bias,

    where n is m normalised alike over the channels. Computed in float32 whatever the
    compute dtype.

    Attributes:
      num_levels: each noise level has a scale, mean scale and bias of its own; None is
        for one of each, which all levels share.
      epsilon: added to both variances.
      dtype: of the output.
    """

    num_levels: int | None = None
    epsilon: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        level: Int[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        """Examples whose level is not below `num_levels` become NaN."""
        batch, _, _, channels = x.shape

        def param(name: str, init: Callable[..., Array]) -> Array:
            """One row for every example."""
            if self.num_levels is None:
                row = self.param(name, init, (channels,))
                return jnp.broadcast_to(row, (batch, channels))
            table = self.param(name, init, (self.num_levels, channels))
            return jnp.take(table, level, axis=0, mode="fill")

        scale = param("scale", _near_one)
        mean_scale = param("mean_scale", _near_one)
        bias = param("bias", nn.initializers.zeros)

        x = x.astype(jnp.float32)
        mean, var = x.mean((1, 2)), x.var((1, 2))
        centred = mean - mean.mean(-1, keepdims=True)
        # The official code divides by one channel fewer than there are.
        spread = mean.var(-1, keepdims=True, ddof=1)
        centred = centred * jax.lax.rsqrt(spread + self.epsilon)

        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = scale * mean_scale * centred + bias - mean * factor
        return (x * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)


def _near_one(key: Array, shape: tuple[int, ...]) -> Array:
    """Mean 1, standard deviation 0.02: Song & Ermon 2019, official code."""
    return 1 + 0.02 * jax.random.normal(key, shape)


class LayerNorm(nn.Module):
    """Normalises the channels of each position (Ba et al. 2016, arXiv:1607.06450).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, in float32 whatever the compute
    dtype.

    Attributes:
      epsilon: added to the variance.
      use_scale, use_bias: whether they are learnt, the bias from zero.
      scale_init: of the scale.
      dtype: of the output.
    """

    epsilon: float = 1e-6
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], train: bool = False
    ) -> Float[Array, "*batch channels"]:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return _affine(self, x * factor, self.scale_init).astype(self.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square (Zhang & Sennrich 2019, arXiv:1910.07467).

    y = x / sqrt(mean(x^2) + epsilon) * scale, in float32 whatever the compute dtype.

    Attributes:
      epsilon: added to the mean square.
      use_scale, use_bias: whether they are learnt, from one and zero.
      dtype: of the output.
    """

    epsilon: float = 1e-6
    use_scale: bool = True
    use_bias: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], train: bool = False
    ) -> Float[Array, "*batch channels"]:
        x = x.astype(jnp.float32)
        factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return _affine(self, x * factor).astype(self.dtype)


class ScaleNorm(nn.Module):
    """Puts the channels of each position on a sphere whose radius is learnt.

    y = scale * x / max(|x|, epsilon), with one `scale`, which starts at sqrt(channels),
    in float32 whatever the compute dtype (Nguyen & Salazar 2019, arXiv:1910.05895).

    Attributes:
      epsilon: the least length that is divided by.
      unit: |x| / sqrt(channels) in the place of |x|, and a scale that starts at one:
        the same to begin with, but learnt sqrt(channels) times as fast by Adam (the
        port of FLASH).
      dtype: of the output.
    """

    epsilon: float = 1e-5
    unit: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], train: bool = False
    ) -> Float[Array, "*batch channels"]:
        root = math.sqrt(x.shape[-1])
        initial = nn.initializers.constant(1.0 if self.unit else root)
        scale = self.param("scale", initial, ())
        x = x.astype(jnp.float32)
        square = jnp.square(x).sum(-1, keepdims=True)
        if self.unit:
            square = square / x.shape[-1]
        # Under the root: the gradient of a length is not finite at zero.
        length = jnp.sqrt(jnp.maximum(square, self.epsilon**2))
        return (x * (scale / length)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Normalises each channel over all that a batch holds of it.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias (Ioffe & Szegedy 2015,
    arXiv:1502.03167), in float32 whatever the compute dtype. Training takes the moments
    of the batch, global whatever the sharding, and keeps averages of them in the
    collection `batch_stats`; evaluation takes these. Padding is data like any other.

    Attributes:
      epsilon: added to the variance.
      momentum: of the averages: what they keep at each step.
      use_scale, use_bias: whether they are learnt, from one and zero.
      dtype: of the output.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    use_scale: bool = True
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], train: bool = False
    ) -> Float[Array, "*batch channels"]:
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        x = x.astype(jnp.float32)
        m, v = mean.value, var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            m, v = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                for average, moment in ((mean, m), (var, v)):
                    kept = self.momentum * average.value
                    average.value = kept + (1 - self.momentum) * moment
        m, v = (moment.reshape((1,) * (x.ndim - 1) + shape) for moment in (m, v))
        return _affine(self, (x - m) * jax.lax.rsqrt(v + self.epsilon)).astype(
            self.dtype
        )


def _affine(
    norm: LayerNorm | RMSNorm | BatchNorm,
    x: Array,
    scale_init: Initializer = nn.initializers.ones,
) -> Array:
    """x * scale + bias, of those that the norm learns."""
    shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
    if norm.use_scale:
        x = x * norm.param("scale", scale_init, shape[-1:]).reshape(shape)
    if norm.use_bias:
        x = x + norm.param("bias", nn.initializers.zeros, shape[-1:]).reshape(shape)
    return x
