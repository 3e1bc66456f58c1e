"""Classes of images, by the last feature map of a backbone."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from research.layers.dropout import Dropout
from research.layers.initializers import Normal
from research.layers.linear import Dense
from research.layers.norms import LayerNorm


class ImageClassifier(nn.Module):
    """Logits of the class of an image.

    Attributes:
      backbone: called with the image and `train`, returns feature maps (batch, height,
        width, channels), of which the last counts.
      num_classes: of the logits; None is for the vector that they would be made from.
      norm: of the last map, before its mean; None is for none.
      dropout_rate: of the vector, in training.
      kernel_init: of the head.
      dtype: of the norm; mean, vector and logits are float32.
    """

    backbone: nn.Module
    num_classes: int | None = 1000
    norm: Callable[..., nn.Module] | None = partial(LayerNorm, epsilon=1e-5)
    dropout_rate: float = 0.0
    kernel_init: Initializer = Normal(0.02)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "batch height width image_channels"],
        train: bool = False,
    ) -> Float[Array, "batch features"]:
        x = self.backbone(image, train)[-1]
        if self.norm is not None:
            x = self.norm(dtype=self.dtype, name="norm")(x, train)
        x = x.astype(jnp.float32).mean((1, 2))
        if self.num_classes is None:
            return x
        x = Dropout(self.dropout_rate, name="dropout")(x, train)
        return Dense(self.num_classes, kernel_init=self.kernel_init, name="logits")(x)
