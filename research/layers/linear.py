"""Linear layers for the `dense` slots: the plain one, and others that learn otherwise.

Each is built like `nn.Dense` and, but for the last, begins as the function that this
would be with the same `kernel_init`. The kernel has the name and the shape of
`nn.Dense`'s.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from research.layers.initializers import lecun


class Dense(nn.Module):
    """y = x W + b: `nn.Dense`, whose product goes `by_rows`.

    Attributes:
      features: of the output.
      use_bias: whether there is a bias.
      kernel_init: of W.
      dtype: of the computation; parameters are float32.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch inputs"]
    ) -> Float[Array, "*batch features"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return _product(self, x, jnp.asarray(kernel))


class NtkDense(nn.Module):
    """y = x W / sqrt(fan in) + b, W standard normal for LeCun's `kernel_init`.

    The parametrization of the neural tangent kernel (Jacot et al. 2018,
    arXiv:1806.07572), alias the equalized learning rate (Karras et al. 2018,
    arXiv:1710.10196): every kernel's elements are of order one, and Adam moves all of
    them alike.

    Attributes:
      features: of the output.
      use_bias: whether there is a bias.
      kernel_init: of W / sqrt(fan in).
      dtype: of the computation.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch inputs"]
    ) -> Float[Array, "*batch features"]:
        root = math.sqrt(x.shape[-1])
        kernel = self.param(
            "kernel",
            lambda *args: root * self.kernel_init(*args),
            (x.shape[-1], self.features),
        )
        return _product(self, x, kernel / root)


class WeightNormDense(nn.Module):
    """y = x (scale * V / |V|) + b, a length and a direction for each output.

    Salimans & Kingma 2016, arXiv:1602.07868, Eq. 2. V is `kernel`, and the lengths
    begin as its own.

    Attributes:
      features: of the output.
      use_bias: whether there is a bias.
      kernel_init: of V.
      dtype: of the computation.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch inputs"]
    ) -> Float[Array, "*batch features"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        length = jnp.linalg.norm(kernel, axis=0)
        scale = self.param("scale", lambda _: length)
        return _product(self, x, kernel * (scale / length)[None])


class SpectralNormDense(nn.Module):
    """y = x W / sigma + b, sigma the largest singular value of W, by power iteration.

    Miyato et al. 2018, arXiv:1802.05957, Algorithm 1: one iteration at each training
    step goes on from the last one's vector, which the collection `spectral` holds and
    through which no gradient flows. Training is where that collection is mutable.

    Attributes:
      features: of the output.
      use_bias: whether there is a bias.
      kernel_init: of W.
      dtype: of the computation.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch inputs"]
    ) -> Float[Array, "*batch features"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)

        def fresh() -> Array:
            key = self.make_rng("params")
            return _normalized(jax.random.normal(key, shape[1:]))

        right = self.variable("spectral", "right", fresh)
        fixed = jax.lax.stop_gradient(kernel)
        u = _normalized(fixed @ right.value)
        v = _normalized(u @ fixed)
        if self.is_mutable_collection("spectral") and not self.is_initializing():
            right.value = v
        return _product(self, x, kernel / (u @ kernel @ v))


def _normalized(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)


def by_rows(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs features"]
) -> Float[Array, "*batch features"]:
    """x kernel, with all axes before the last as one.

    The gradient of the kernel is then a plain product of two matrices. Where it is a
    sum over several axes, XLA takes up to three times as long for it on CPUs.
    """
    rows = x.reshape(-1, x.shape[-1]) @ kernel
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def _product(
    layer: Dense | NtkDense | WeightNormDense | SpectralNormDense,
    x: Array,
    kernel: Array,
) -> Array:
    """x kernel + the layer's bias, in its type."""
    y = by_rows(x.astype(layer.dtype), kernel.astype(layer.dtype))
    if layer.use_bias:
        bias = layer.param("bias", nn.initializers.zeros, (layer.features,))
        y += bias.astype(layer.dtype).reshape((1,) * (y.ndim - 1) + bias.shape)
    return y
