"""Initial distributions of parameters.

Records, so that an experiment's text shows their numbers and `--set` reaches them; what
they draw is drawn by `jax.nn.initializers`. Fans are those of the last two axes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jaxtyping import Array

_TRUNCATED_STD = 0.87962566103423978
"""Of a standard normal that is cut off at two standard deviations."""

# By a standard deviation


@dataclass(frozen=True)
class Normal:
    """Normal around zero with standard deviation `std`."""

    std: float = 0.02

    def __call__(
        self, key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        return initializers.normal(self.std)(key, shape, dtype, out_sharding)


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal, without its tails, around zero with standard deviation `std`.

    It is that of what remains: the normal that is cut off at two standard deviations of
    its own is 1.1369 times as wide, so that nothing is beyond 2.27 `std`. The function
    of `jax.nn.initializers`, and TensorFlow's, are 12% narrower than they say.
    """

    std: float = 0.02

    def __call__(
        self, key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        draw = initializers.truncated_normal(self.std / _TRUNCATED_STD)
        return draw(key, shape, dtype, out_sharding)


@dataclass(frozen=True)
class Uniform:
    """Uniform around zero with standard deviation `std`: within sqrt(3) times that."""

    std: float

    def __call__(
        self, key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        bound = math.sqrt(3) * self.std
        return 2 * initializers.uniform(bound)(key, shape, dtype, out_sharding) - bound


def within(bound: float) -> Uniform:
    """Uniform between -`bound` and `bound`, as recurrent networks' settings say it."""
    return Uniform(bound / math.sqrt(3))


# By the fans


@dataclass(frozen=True)
class VarianceScaling:
    """Variance `scale` over the fan in, the fan out, or the mean of both.

    The truncated normal has that variance, too.
    """

    scale: float = 1.0
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in"
    distribution: Literal["truncated_normal", "normal", "uniform"] = "truncated_normal"

    def __call__(
        self, key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        draw = initializers.variance_scaling(self.scale, self.mode, self.distribution)
        return draw(key, shape, dtype, out_sharding)


def lecun() -> VarianceScaling:
    """Variance 1 / fan in: keeps that of independent inputs."""
    return VarianceScaling(1.0)


def he() -> VarianceScaling:
    """Variance 2 / fan in: of inputs that were halved by a ReLU (arXiv:1502.01852)."""
    return VarianceScaling(2.0)


def xavier(gain: float = 1.0) -> VarianceScaling:
    """Uniform, standard deviation gain * sqrt(2 / (fan in + fan out)).

    A compromise between the forward and the backward pass (Glorot & Bengio 2010).
    """
    return VarianceScaling(gain**2, "fan_avg", "uniform")


def torch_linear() -> VarianceScaling:
    """Uniform within 1 / sqrt(fan in): what PyTorch's linear layers start from."""
    return VarianceScaling(1 / 3, "fan_in", "uniform")


def tuned(activation: Callable[[Array], Array]) -> VarianceScaling:
    """Variance 1 / (fan in * E[f(e)^2]) for inputs f(e), e standard normal.

    2 / fan in for a ReLU: it keeps the second moment after any activation.
    """
    return VarianceScaling(1 / second_moment(activation))


def second_moment(activation: Callable[[Array], Array]) -> float:
    """E[f(e)^2] of an activation f for a standard normal e."""
    with jax.ensure_compile_time_eval():
        x = jnp.linspace(-12.0, 12.0, 2**14 + 1)
        density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
        values = jnp.square(activation(x)) * density
        return float(jnp.trapezoid(values, x))


def uniform_fan_avg(scale: float = 1.0) -> Initializer:
    """Uniform with variance `scale / mean(fan in, fan out)`: Glorot for scale 1.

    Scale 0 stands for 1e-10: as good as zero, but no parameter starts without a
    gradient, which two zero-initialised layers in a row would (Song et al. 2021,
    arXiv:2011.13456, official code).
    """
    return initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


@dataclass(frozen=True)
class Orthogonal:
    """`gain` times a matrix whose rows or columns, the fewer, are orthonormal."""

    gain: float = 1.0

    def __call__(
        self, key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        return initializers.orthogonal(self.gain)(key, shape, dtype, out_sharding)


# By depth and width


@dataclass(frozen=True)
class Scaled:
    """`factor` times what another initializer draws."""

    base: Initializer
    factor: float

    def __call__(
        self, key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        drawn = self.base(key, shape, dtype, out_sharding)
        return jnp.asarray(self.factor, drawn.dtype) * drawn


def depth_scaled(base: Initializer, num_layers: int, num_branches: int = 2) -> Scaled:
    """`base` over the square root of how many branches add up in the stream.

    For the projections that end a branch: the sum of all has the variance of one (GPT-2
    with `Normal(0.02)`; Child et al. 2019, arXiv:1904.10509, section 5.2, with
    `VarianceScaling(0.125**2)`).

    Args:
      base: of a single branch.
      num_layers: of the stack.
      num_branches: in a layer.
    """
    return Scaled(base, 1 / math.sqrt(num_branches * num_layers))


def t5_query(head_dim: int) -> VarianceScaling:
    """Variance 1 / (fan in * head dim): has the 1/sqrt(head dim) that logits lack.

    T5 (Raffel et al. 2020, arXiv:1910.10683, official code) starts every other
    projection from `t5_projection`, and embeddings from `Normal(1.0)`.
    """
    return VarianceScaling(1 / head_dim, "fan_in", "normal")


def t5_projection() -> VarianceScaling:
    """Variance 1 / fan in: of keys, values, outputs, and feed-forward layers."""
    return VarianceScaling(1.0, "fan_in", "normal")


@dataclass(frozen=True)
class Readout:
    """Normal with standard deviation sqrt(base_width) / fan in.

    muP's for the last layer (Yang et al. 2022, arXiv:2203.03466, Table 3): variance
    1 / fan in at the base width, and falling with the square of the width.
    """

    base_width: int

    def __call__(
        self, key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        std = math.sqrt(self.base_width) / shape[-2]
        return initializers.normal(std)(key, shape, dtype, out_sharding)
