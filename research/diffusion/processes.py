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
import numpy as np
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


def chain_index(t: Float[Array, "batch"], num_levels: int) -> Float[Array, "batch"]:
    """The level floor(t (N-1)) of a chain of N = `num_levels`, 0 the least noisy.

    t = i/(N-1), which float32 may put just below its level, gives i.
    """
    return jnp.floor(t * (num_levels - 1) + 2**-12)


@dataclass(frozen=True)
class VE(AncestralProcess):
    """Variance exploding: the continuous limit of SMLD's chain of noise levels.

    dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw, with sigma geometric in t from
    `sigma_min` to `sigma_max` (arXiv:2011.13456, Eq. 9 and appendix C). At the times
    i/(N-1) its deviations are those of a geometric ladder of N levels, so it is also
    the process of the discrete models of NCSN.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def sigma(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The standard deviation of the noise at time t."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> Float[Array, "batch ..."]:
        return jnp.zeros_like(x)

    def diffusion(self, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        rate = 2 * math.log(self.sigma_max / self.sigma_min)
        return self.sigma(t) * math.sqrt(rate)

    def marginal(
        self, x0: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        # Differs: Eq. 29 subtracts sigma(0)^2, which appendix C and the official code
        # leave in, so that x(0) itself carries noise of sigma_min.
        return x0, self.sigma(t)

    def prior(
        self, rng: Key[Array, ""], shape: tuple[int, ...]
    ) -> Float[Array, "batch ..."]:
        return self.sigma_max * jax.random.normal(rng, shape)

    def log_prior(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
        return normal_log_density(x, self.sigma_max)

    def chain_sigmas(
        self, t: Float[Array, "batch"], dt: float
    ) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
        """sigma_i and sigma_{i-1} of SMLD's 1/dt levels; sigma_{-1} is 0."""
        num_levels = max(round(1 / dt), 2)
        index = chain_index(t, num_levels)
        before = self.sigma((index - 1) / (num_levels - 1))
        sigma = self.sigma(index / (num_levels - 1))
        return sigma, jnp.where(index > 0, before, 0.0)

    def discretize(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"], dt: float
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """SMLD's chain: x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z (Eq. 8)."""
        sigma, before = self.chain_sigmas(t, dt)
        return jnp.zeros_like(x), jnp.sqrt(jnp.square(sigma) - jnp.square(before))

    def ancestral(
        self,
        x: Float[Array, "batch ..."],
        score: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        dt: float,
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        """SMLD's posterior given the denoised state (arXiv:2011.13456, Eq. 47)."""
        sigma, before = self.chain_sigmas(t, dt)
        added = jnp.square(sigma) - jnp.square(before)
        return x + batch_mul(added, score), before / sigma * jnp.sqrt(added)


@dataclass(frozen=True)
class LinearBeta(Process):
    """What the processes with the drift -1/2 beta(t) x share; beta is linear in t."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The rate of noise at time t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The integral of beta from 0 to t."""
        return t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)

    def drift(
        self, x: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> Float[Array, "batch ..."]:
        return batch_mul(-0.5 * self.beta(t), x)

    def prior(
        self, rng: Key[Array, ""], shape: tuple[int, ...]
    ) -> Float[Array, "batch ..."]:
        return jax.random.normal(rng, shape)

    def log_prior(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
        return normal_log_density(x)


@dataclass(frozen=True)
class VP(LinearBeta, AncestralProcess):
    """Variance preserving: the continuous limit of DDPM's chain.

    dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw, with beta linear in t
    (arXiv:2011.13456, Eq. 11 and appendix C).
    """

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
        num_levels = max(round(1 / dt), 2)
        return dt * self.beta(chain_index(t, num_levels) / (num_levels - 1))

    def diffusion(self, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        return jnp.sqrt(self.beta(t))

    def marginal(
        self, x0: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        integral = self.integrated_beta(t)
        # expm1: at t = 1e-5 the variance is 1e-6, which 1 - exp() loses to rounding.
        return batch_mul(jnp.exp(-0.5 * integral), x0), jnp.sqrt(-jnp.expm1(-integral))

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
class DDPM(VP):
    """DDPM's chain of `num_levels` steps itself: VP with the chain's own marginals.

    x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z with N betas linear from beta_min/N
    to beta_max/N (Ho et al. 2020, arXiv:2006.11239). Its step i is at t = i/(N-1), and
    times between two steps count as the earlier one.
    """

    num_levels: int = 1000

    def marginal(
        self, x0: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        levels = np.linspace(self.beta_min, self.beta_max, self.num_levels)
        kept = np.cumsum(np.log1p(-levels / self.num_levels))  # of the signal's energy
        log_kept = jnp.asarray(kept, jnp.float32)[
            chain_index(t, self.num_levels).astype(jnp.int32)
        ]
        return batch_mul(jnp.exp(0.5 * log_kept), x0), jnp.sqrt(-jnp.expm1(log_kept))


@dataclass(frozen=True)
class SubVP(LinearBeta):
    """Sub-VP: variance below VP's at every time, for better likelihoods.

    dx = -1/2 beta(t) x dt + sqrt(beta(t) (1 - exp(-2 B(t)))) dw, B the integral of beta
    (arXiv:2011.13456, Eq. 12 and appendix C). It has no Markov chain of its own.
    """

    def diffusion(self, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        return jnp.sqrt(self.beta(t) * -jnp.expm1(-2 * self.integrated_beta(t)))

    def marginal(
        self, x0: Float[Array, "batch ..."], t: Float[Array, "batch"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
        integral = self.integrated_beta(t)
        return batch_mul(jnp.exp(-0.5 * integral), x0), -jnp.expm1(-integral)


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
