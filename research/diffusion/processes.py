"""Diffusion processes: how data turn into noise in continuous time, and back.

A process is the stochastic differential equation (SDE)

    dx = f(x, t) dt + g(t) dw,    t in [0, 1],

that takes data at t = 0 to a known prior at t = 1, with f affine in x, so that x(t)
given x(0) is Gaussian (Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations", arXiv:2011.13456). The equations that run it
backwards are wrappers around any process and any score function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.errors import UserError

Score = Callable[[Float[Array, "batch ..."], Float[Array, "batch"]], jax.Array]
"""`(x, t)` to the gradient of the log-density of x(t), shaped like `x`."""


def batch_mul(
    coefficient: Float[Array, "batch"], x: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """`x` with each example multiplied by its own coefficient."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1)) * x


def normal_log_density(
    x: Float[Array, "batch ..."], std: float = 1.0
) -> Float[Array, "batch"]:
    """Log-density in nats of each example under N(0, std^2 I)."""
    dims = x[0].size
    squares = jnp.sum(jnp.square(x / std).reshape(x.shape[0], -1), axis=-1)
    return -0.5 * (squares + dims * math.log(2 * math.pi * std**2))


@runtime_checkable
class Process(Protocol):
    """A forward process; a new one is one frozen record that inherits from this."""

    def drift(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> Float[Array, "batch ..."]:
        """f(x, t)."""
        ...

    def diffusion(self, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        """g(t)."""
        ...

    def marginal(
        self, x0: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """Mean and standard deviation of x(t) given x(0) = x0."""
        ...

    def prior(
        self, rng: Key[Array, ""], shape: tuple[int, ...]
    ) -> Float[Array, "batch ..."]:
        """Draws x(1)."""
        ...

    def log_prior(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
        """Log-density in nats of the prior."""
        ...

    def discretize(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"], dt: float
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """F and G of one forward step x + F + G z of size `dt` > 0.

        Euler-Maruyama, for processes without a Markov chain of their own.
        """
        return dt * self.drift(x, t), math.sqrt(dt) * self.diffusion(t)


@runtime_checkable
class AncestralProcess(Process, Protocol):
    """A process whose Markov chain has a reverse transition of its own."""

    def ancestral(
        self,
        x: Float[Array, "batch ..."],
        score: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        dt: float,
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """Mean and standard deviation of the chain's previous state given `x`."""
        ...


@dataclass(frozen=True)
class VP(AncestralProcess):
    """Variance preserving: the continuous limit of DDPM's chain.

    dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw, with beta linear in t
    (arXiv:2011.13456, Eq. 11 and appendix C).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The rate of noise at time t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The integral of beta from 0 to t."""
        return t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)

    def chain_beta(self, t: Float[Array, "batch"], dt: float) -> Float[Array, "batch"]:
        """beta_i of DDPM's chain of N = 1/dt steps, at its step i = floor(t (N-1)).

        The chain has N equally spaced betas from beta_min/N to beta_max/N
        (arXiv:2011.13456, appendix C); 1000 steps give DDPM's 1e-4 to 0.02.
        """
        if self.beta_max * dt >= 1:
            raise UserError(
                f"A chain of {1 / dt:g} steps with beta_max={self.beta_max:g} has a"
                " beta of 1 or more, where betas must stay below 1; take more than"
                f" {self.beta_max:g} steps, or the euler_maruyama predictor."
            )
        last = max(round(1 / dt) - 1, 1)
        return dt * self.beta(jnp.floor(t * last) / last)

    def drift(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> Float[Array, "batch ..."]:
        return batch_mul(-0.5 * self.beta(t), x)

    def diffusion(self, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        return jnp.sqrt(self.beta(t))

    def marginal(
        self, x0: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        integral = self.integrated_beta(t)
        # expm1: at t = 1e-5 the variance is 1e-6, which 1 - exp() loses to rounding.
        return batch_mul(jnp.exp(-0.5 * integral), x0), jnp.sqrt(-jnp.expm1(-integral))

    def prior(
        self, rng: Key[Array, ""], shape: tuple[int, ...]
    ) -> Float[Array, "batch ..."]:
        return jax.random.normal(rng, shape)

    def log_prior(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
        return normal_log_density(x)

    def discretize(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"], dt: float
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """DDPM's chain: x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z (Eq. 10)."""
        beta = self.chain_beta(t, dt)
        return batch_mul(jnp.sqrt(1 - beta) - 1, x), jnp.sqrt(beta)

    def ancestral(
        self,
        x: Float[Array, "batch ..."],
        score: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        dt: float,
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """DDPM's sampling step with variance beta_i (arXiv:2011.13456, Eq. 4)."""
        beta = self.chain_beta(t, dt)
        mean = batch_mul(jax.lax.rsqrt(1 - beta), x + batch_mul(beta, score))
        return mean, jnp.sqrt(beta)


@dataclass(frozen=True)
class Reversal:
    """The equation that runs `process` backwards in time, given its score.

    For every `noise_scale` c >= 0 the equation

        dx = [f(x, t) - (1 + c^2)/2 g(t)^2 score(x, t)] dt + c g(t) dw,

    integrated from t = 1 to 0, has the marginals of the forward process: 1 is the
    reverse SDE, 0 the probability flow ODE (arXiv:2011.13456, Eq. 6 and 13; the family
    between them, arXiv:2106.02808).
    """

    process: Process
    score: Score
    noise_scale: float = 1.0

    def drift(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> Float[Array, "batch ..."]:
        """dx/dt without the noise; a step backwards subtracts it."""
        forward, scale = self.process.drift(x, t), self.process.diffusion(t)
        return self._corrected(forward, scale, x, t)

    def diffusion(self, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        """The scale of the noise."""
        return self.noise_scale * self.process.diffusion(t)

    def discretize(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"], dt: float
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """F and G of one backward step x - F + G z, from the forward chain's own.

        Reverse diffusion sampling and, without noise, its probability flow
        (arXiv:2011.13456, appendices E and D.3).
        """
        forward, scale = self.process.discretize(x, t, dt)
        return self._corrected(forward, scale, x, t), self.noise_scale * scale

    def _corrected(self, forward, scale, x, t):
        weight = 0.5 * (1 + self.noise_scale**2) * jnp.square(scale)
        return forward - batch_mul(weight, self.score(x, t))


def reverse_sde(process: Process, score: Score) -> Reversal:
    """The reverse-time SDE (arXiv:2011.13456, Eq. 6)."""
    return Reversal(process, score, noise_scale=1.0)


def probability_flow(process: Process, score: Score) -> Reversal:
    """The ODE with the marginals of `process` (arXiv:2011.13456, Eq. 13)."""
    return Reversal(process, score, noise_scale=0.0)
