"""What a network predicts about x(t), and what it is told of t.

With x = a x0 + s noise, a and s the scales of a process at time t, each of noise, data,
velocity and score determines the others:

    x0 = (x - s noise) / a,    v = a noise - s x0,    score = -noise / s

(Ho et al. 2020, arXiv:2006.11239, section 3.2; Salimans & Ho 2022, arXiv:2202.00512,
appendix D). All arithmetic is in float32, whatever the network computes in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.diffusion.processes import Process, batch_mul


def scales(
    process: Process, t: Float[Array, "batch"]
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """a and s of x(t) = a x(0) + s noise."""
    return process.marginal(jnp.ones_like(t), t)


@runtime_checkable
class Parameterization(Protocol):
    """A quantity that a network may predict, and its equivalent noise."""

    def to_noise(
        self,
        output: Float[Array, "batch ..."],
        x: Float[Array, "batch ..."],
        a: Float[Array, "batch"],
        s: Float[Array, "batch"],
    ) -> Float[Array, "batch ..."]:
        """The noise in `x` if the quantity is `output`."""
        ...

    def from_noise(
        self,
        noise: Float[Array, "batch ..."],
        x: Float[Array, "batch ..."],
        a: Float[Array, "batch"],
        s: Float[Array, "batch"],
    ) -> Float[Array, "batch ..."]:
        """The quantity if the noise in `x` is `noise`."""
        ...


@dataclass(frozen=True)
class Noise:
    """The standard normal noise itself: DDPM, and Score SDE's VP and sub-VP."""

    def to_noise(self, output, x, a, s):
        return output

    def from_noise(self, noise, x, a, s):
        return noise


@dataclass(frozen=True)
class ScaledScore:
    """The score times s, minus the noise: NCSN++ and NCSNv2 divide it by s."""

    def to_noise(self, output, x, a, s):
        return -output

    def from_noise(self, noise, x, a, s):
        return -noise


@dataclass(frozen=True)
class RawScore:
    """The score: the first NCSN."""

    def to_noise(self, output, x, a, s):
        return batch_mul(-s, output)

    def from_noise(self, noise, x, a, s):
        return batch_mul(-1 / s, noise)


@dataclass(frozen=True)
class Clean:
    """The data x0."""

    def to_noise(self, output, x, a, s):
        return batch_mul(1 / s, x - batch_mul(a, output))

    def from_noise(self, noise, x, a, s):
        return batch_mul(1 / a, x - batch_mul(s, noise))


@dataclass(frozen=True)
class Velocity:
    """v = a noise - s x0, for any a and s, not only where a^2 + s^2 = 1."""

    def to_noise(self, output, x, a, s):
        return batch_mul(
            1 / (jnp.square(a) + jnp.square(s)), batch_mul(s, x) + batch_mul(a, output)
        )

    def from_noise(self, noise, x, a, s):
        return batch_mul(a, noise) - batch_mul(s, Clean().from_noise(noise, x, a, s))


Condition = Callable[[Process, Float[Array, "batch"]], jax.Array]
"""What a network is told of the times t, `(batch,)`."""


def time(process: Process, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """t itself."""
    return t


def log_std(process: Process, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """The log of the noise's standard deviation: continuous NCSN++."""
    return jnp.log(scales(process, t)[1])


@dataclass(frozen=True)
class Level:
    """The index of the nearest of `num_levels` levels, 0 the noisiest: NCSN."""

    num_levels: int = 1000

    def __call__(
        self, process: Process, t: Float[Array, "batch"]
    ) -> Float[Array, "batch"]:
        return jnp.round((1 - t) * (self.num_levels - 1))
