"""Multilayer perceptrons."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float


class Mlp(nn.Module):
    """Dense layers with an activation between them, none after the last.

    Attributes:
      widths: of the layers in between.
      activation: between two layers.
    """

    widths: tuple[int, ...] = (128, 128)
    activation: Callable[[Array], Array] = jax.nn.softplus

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """As many numbers as go in."""
        dim = x.shape[-1]
        for index, width in enumerate(self.widths):
            x = self.activation(nn.Dense(width, name=f"dense_{index}")(x))
        return nn.Dense(dim, name="out")(x)
