"""The stochastic Heun sampler of Karras et al. 2022, arXiv:2206.00364.

"Elucidating the Design Space of Diffusion-Based Generative Models". With
x(t) = a x0 + s noise, y = x / a is data under noise of level sigma = s / a, whatever
the process, and the probability flow is

    dy / dsigma = -s score(x, t),

the noise in x. A process is the way from the levels back to times: any will do whose
noise level grows with time, as those of `processes` do.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.diffusion.processes import Process, Score
from research.errors import UserError


def noise_level(process: Process, t: Float[Array, "times"]) -> Float[Array, "times"]:
    """The noise over the signal, s / a, of x(t) = a x(0) + s noise."""
    a, s = process.marginal(jnp.ones_like(t), t)
    return s / a


def time_of(process: Process, levels: Float[Array, "levels"]) -> Float[Array, "levels"]:
    """The first times with these noise levels or more; 1 where there are none.

    By bisection, down to the spacing of float32; a level that rounding may have put
    just below counts.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        below = noise_level(process, middle) < levels * (1 - 1e-6)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bounds = jnp.zeros_like(levels), jnp.ones_like(levels)
    return jax.lax.fori_loop(0, 40, halve, bounds)[1]


@dataclass(frozen=True)
class Karras:
    """Heun's method on the probability flow, with noise added before each step.

    Algorithm 2 of arXiv:2206.00364; without `churn` its deterministic Algorithm 1. A
    step takes two score evaluations, the last one, to the data, one.

    Attributes:
      num_steps: from the prior at time 1 to the data.
      rho: of the noise levels, whose rho-th roots are evenly spaced (Eq. 5): the more,
        the shorter are the steps near the data. Infinity is for a geometric ladder.
      churn: S_churn. Noise raises the level before its step by the factor
        1 + churn / num_steps, at most sqrt(2), but not above the level of time 1.
      min_churned, max_churned: S_min and S_max, the levels where noise is added.
      noise_scale: S_noise, the standard deviation of that noise.
      min_time: of the last level before the data.
    """

    num_steps: int = 18
    rho: float = 7.0
    churn: float = 0.0
    min_churned: float = 0.0
    max_churned: float = math.inf
    noise_scale: float = 1.0
    min_time: float = 1e-3

    def __post_init__(self):
        if self.num_steps < 1 or self.rho <= 0:
            raise UserError(
                f"num_steps={self.num_steps} and rho={self.rho:g}: expected at least "
                "one step, and a positive rho"
            )

    def levels(self, process: Process) -> Float[Array, "num_steps"]:
        """The noise levels that steps start from, before noise is added (Eq. 5)."""
        ends = noise_level(process, jnp.array([1.0, self.min_time]))
        position = jnp.linspace(0.0, 1.0, self.num_steps)
        if math.isinf(self.rho):
            return ends[0] * (ends[1] / ends[0]) ** position
        roots = ends ** (1 / self.rho)
        return (roots[0] + position * (roots[1] - roots[0])) ** self.rho

    def __call__(
        self,
        rng: Key[Array, ""],
        score: Score,
        process: Process,
        shape: tuple[int, ...],
    ) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
        wanted = self.levels(process)
        raised = (self.min_churned <= wanted) & (wanted <= self.max_churned)
        gamma = min(self.churn / self.num_steps, math.sqrt(2) - 1)
        # What is trained at discrete times has no other levels: all are its own.
        times = time_of(process, wanted)
        times_hat = time_of(process, jnp.where(raised, (1 + gamma) * wanted, wanted))
        levels, levels_hat = (
            noise_level(process, times),
            noise_level(process, times_hat),
        )
        added = jnp.square(levels_hat) - jnp.square(levels)
        added = self.noise_scale * jnp.sqrt(jnp.maximum(added, 0))

        def scales(time):
            signal, noise = process.marginal(jnp.ones(1), time[None])
            return signal[0], noise[0]

        def slope(y, time):
            a, s = scales(time)
            return -s * score(a * y, jnp.full(shape[:1], time))

        def churned(y, rng, added):
            return y + added * jax.random.normal(rng, shape, y.dtype)

        def step(y, inputs):
            rng, added, (time_hat, level_hat), (time, level) = inputs
            y = churned(y, rng, added)
            first = slope(y, time_hat)
            euler = y + (level - level_hat) * first
            mean = (first + slope(euler, time)) / 2
            return y + (level - level_hat) * mean, None

        prior_rng, steps_rng = jax.random.split(rng)
        rngs = jax.random.split(steps_rng, self.num_steps)
        y = process.prior(prior_rng, shape) / scales(jnp.ones(()))[0]
        inputs = (
            rngs[:-1],
            added[:-1],
            (times_hat[:-1], levels_hat[:-1]),
            (times[1:], levels[1:]),
        )
        y, _ = jax.lax.scan(step, y, inputs)
        y = churned(y, rngs[-1], added[-1])
        y = y - levels_hat[-1] * slope(y, times_hat[-1])
        return y, jnp.array(2 * self.num_steps - 1)
