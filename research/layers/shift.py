"""Channels that arrive one position late."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.layers.cores.base import SEES_ALL, Bias, Mask


class TokenShift(nn.Module):
    """A mixer that sees half of the channels of the position before.

    The first position, and the first of each segment, see zeros there. A convolution of
    width two without parameters (FLASH-pytorch's `shift_tokens`; an idea of Bo Peng's
    in RWKV, 2021): what a position follows need not be attended to.

    Attributes:
      mixer: of positions, a slot of `TransformerBlock`.
    """

    mixer: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        *,
        mask: Mask = SEES_ALL,
        bias: Bias | None = None,
        positions: Int[Array, "#batch length"] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch length dim"]:
        """The mixer's output. With `decode`, `cache` holds the last position."""
        late, on_time = jnp.array_split(x, 2, axis=-1)
        first = jnp.zeros_like(late[:, :1])
        if decode:
            is_new = not self.has_variable("cache", "last")
            last = self.variable("cache", "last", jnp.zeros, first.shape, first.dtype)
            if not is_new:
                first, last.value = last.value, late[:, -1:]
        before = jnp.concatenate([first, late[:, :-1]], axis=1)
        if mask.segments is not None:
            segments = mask.segments[0]
            goes_on = segments[:, 1:] == segments[:, :-1]
            goes_on = jnp.pad(goes_on, ((0, 0), (1, 0)), constant_values=True)
            before = jnp.where(goes_on[:, :, None], before, 0)
        return self.mixer(name="mixer")(
            jnp.concatenate([before, on_time], axis=-1),
            mask=mask,
            bias=bias,
            positions=positions,
            train=train,
            decode=decode,
        )
