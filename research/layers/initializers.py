"""Initial distributions of parameters."""

from jax.nn import initializers
from jax.nn.initializers import Initializer


def uniform_fan_avg(scale: float = 1.0) -> Initializer:
    """Uniform with variance `scale / mean(fan in, fan out)`: Glorot for scale 1.

    Scale 0 stands for 1e-10: as good as zero, but no parameter starts without a
    gradient, which two zero-initialised layers in a row would (Song et al. 2021,
    arXiv:2011.13456, official code).
    """
    return initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")
