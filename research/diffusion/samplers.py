"""Samplers: from the prior back to data, given a process and its score.

Every sampler is called `sampler(rng, score, process, shape)` and returns samples of
that shape with the number of score evaluations it took (Song et al. 2021,
arXiv:2011.13456, section 4). All are pure functions that may be jitted with the batch
sharded in any way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.diffusion.processes import (
    AncestralProcess,
    Process,
    Reversal,
    Score,
    batch_mul,
    probability_flow,
    reverse_sde,
)
from research.errors import UserError


@runtime_checkable
class Sampler(Protocol):
    """Draws from the data distribution; one frozen record per method."""

    def __call__(
        self,
        rng: Key[Array, ""],
        score: Score,
        process: Process,
        shape: tuple[int, ...],
    ) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
        """Samples of `shape`, and the number of score evaluations."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """One step of size `dt` backwards in time; one score evaluation."""

    def __call__(
        self,
        rng: Key[Array, ""],
        x: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        dt: float,
        score: Score,
        process: Process,
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
        """The next state, and that state before its noise was added."""
        ...


@runtime_checkable
class Corrector(Protocol):
    """Moves samples towards the marginal at time t; `num_steps` score evaluations."""

    @property
    def num_steps(self) -> int: ...

    def __call__(
        self,
        rng: Key[Array, ""],
        x: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        dt: float,
        score: Score,
        process: Process,
    ) -> Float[Array, "batch ..."]:
        """The corrected state at the same time."""
        ...


def euler_maruyama(
    rng: Key[Array, ""],
    x: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
    dt: float,
    score: Score,
    process: Process,
    noise_scale: float = 1.0,
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """Euler-Maruyama on the reverse SDE; `noise_scale=0` is Euler on the ODE."""
    reverse = Reversal(process, score, noise_scale)
    mean = x - dt * reverse.drift(x, t)
    return _add_noise(rng, mean, dt**0.5 * reverse.diffusion(t)), mean


def reverse_diffusion(
    rng: Key[Array, ""],
    x: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
    dt: float,
    score: Score,
    process: Process,
    noise_scale: float = 1.0,
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """The process's own forward chain, reversed (arXiv:2011.13456, appendix E).

    `noise_scale=0` is the paper's fixed-grid probability flow sampler (appendix D.3).
    """
    step, scale = Reversal(process, score, noise_scale).discretize(x, t, dt)
    mean = x - step
    return _add_noise(rng, mean, scale), mean


def ancestral(
    rng: Key[Array, ""],
    x: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
    dt: float,
    score: Score,
    process: Process,
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """The chain's own reverse transition (arXiv:2011.13456, Eq. 4 and appendix F).

    Raises `UserError` for a process that has none.
    """
    if not isinstance(process, AncestralProcess):
        raise UserError(
            f"The ancestral predictor needs a process with an `ancestral` rule, which"
            f" {type(process).__name__} has not; use reverse_diffusion or"
            " euler_maruyama."
        )
    mean, std = process.ancestral(x, score(x, t), t, dt)
    return _add_noise(rng, mean, std), mean


def _add_noise(rng, mean, std):
    return mean + batch_mul(std, jax.random.normal(rng, mean.shape, mean.dtype))


@dataclass(frozen=True)
class Langevin:
    """Langevin dynamics with a step set by a signal-to-noise ratio.

    step = 2 alpha (snr |z| / |score|)^2, both norms averaged over the whole batch
    (arXiv:2011.13456, Algorithms 4 and 5). With few examples in the batch the mean
    norms are noisy, and so is the step.
    """

    snr: float = 0.16
    num_steps: int = 1

    def __call__(
        self,
        rng: Key[Array, ""],
        x: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        dt: float,
        score: Score,
        process: Process,
    ) -> Float[Array, "batch ..."]:
        alpha = _kept_energy(process, t, dt)

        def step(x, rng):
            gradient = score(x, t)
            noise = jax.random.normal(rng, x.shape, x.dtype)
            ratio = self.snr * _mean_norm(noise) / _mean_norm(gradient)
            size = 2 * alpha * jnp.square(ratio)
            x = x + batch_mul(size, gradient) + batch_mul(jnp.sqrt(2 * size), noise)
            return x, None

        return jax.lax.scan(step, x, jax.random.split(rng, self.num_steps))[0]


@dataclass(frozen=True)
class AnnealedCorrector:
    """Langevin dynamics with a step in proportion to the marginal's variance.

    step = 2 alpha (snr std(t))^2: the annealed Langevin dynamics of NCSN as Song et al.
    2021 write it (arXiv:2011.13456, official code). On NCSN's ladder down to 0.01 an
    snr of 0.316 is its published step size 2e-5, 0.176 NCSNv2's 6.2e-6.
    """

    snr: float = 0.176
    num_steps: int = 5

    def __call__(
        self,
        rng: Key[Array, ""],
        x: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        dt: float,
        score: Score,
        process: Process,
    ) -> Float[Array, "batch ..."]:
        _, std = process.marginal(jnp.ones_like(t), t)
        size = 2 * _kept_energy(process, t, dt) * jnp.square(self.snr * std)
        return _langevin(rng, x, t, score, size, self.num_steps)


def _kept_energy(process, t, dt):
    # alpha is 1 - beta_i for VP and 1 for VE: what one step of the forward chain
    # keeps of the signal's energy. Differs: the official code reads it from a
    # table that its sub-VP lacks; this form has a value for every process.
    ones = jnp.ones_like(t)
    return jnp.square(ones + process.discretize(ones, t, dt)[0])


def _langevin(rng, x, t, score, size, num_steps):
    def step(x, rng):
        noise = jax.random.normal(rng, x.shape, x.dtype)
        x = x + batch_mul(size, score(x, t)) + batch_mul(jnp.sqrt(2 * size), noise)
        return x, None

    return jax.lax.scan(step, x, jax.random.split(rng, num_steps))[0]


def _mean_norm(x):
    return jnp.linalg.norm(x.reshape(x.shape[0], -1), axis=-1).mean()


@dataclass(frozen=True)
class PredictorCorrector:
    """Steps the reverse SDE on `num_steps` times from 1 to `min_time`, both included.

    At each time the corrector, when there is one, acts before the predictor. With
    `denoise` the result is the mean of the last step, without its noise. Without a
    predictor the times alone go down (the paper's corrector-only sampler), and there is
    no last step to denoise.
    """

    predictor: Predictor | None = euler_maruyama
    corrector: Corrector | None = None
    num_steps: int = 1000
    min_time: float = 1e-3
    denoise: bool = True

    def __call__(
        self,
        rng: Key[Array, ""],
        score: Score,
        process: Process,
        shape: tuple[int, ...],
    ) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
        # The official step is 1/N, though the grid's spacing is (1 - min_time)/(N-1).
        dt = 1 / self.num_steps

        def step(carry, inputs):
            x, _ = carry
            time, rng = inputs
            t = jnp.full(shape[:1], time)
            corrector_rng, predictor_rng = jax.random.split(rng)
            # Differs: Algorithm 1 of the paper predicts first; the official code,
            # which made the published numbers, corrects first.
            if self.corrector is not None:
                x = self.corrector(corrector_rng, x, t, dt, score, process)
            if self.predictor is None:
                return (x, x), None
            return self.predictor(predictor_rng, x, t, dt, score, process), None

        prior_rng, steps_rng = jax.random.split(rng)
        x = process.prior(prior_rng, shape)
        times = jnp.linspace(1.0, self.min_time, self.num_steps)
        rngs = jax.random.split(steps_rng, self.num_steps)
        (x, mean), _ = jax.lax.scan(step, (x, x), (times, rngs))
        evaluations = int(self.predictor is not None)
        if self.corrector is not None:
            evaluations += self.corrector.num_steps
        return mean if self.denoise else x, jnp.array(self.num_steps * evaluations)


@dataclass(frozen=True)
class AnnealedLangevin:
    """NCSN's sampler: Langevin dynamics at each of `num_levels` levels, noisiest first.

    At level sigma_i, `num_steps` times, x moves by a score + sqrt(2 a) z with
    a = `step_size` (sigma_i / sigma_min)^2 (Song & Ermon 2019, arXiv:1907.05600,
    Algorithm 1; 2020, arXiv:2006.09011, Algorithm 1), starting uniform on
    [`low`, `high`]. With `denoise` the last act is x + sigma_min^2 score, NCSNv2's.

    Differs: the papers write a/2 and sqrt(a); their code, which made the published
    numbers with the same `step_size`, takes twice that step.
    """

    num_levels: int = 232
    num_steps: int = 5
    step_size: float = 6.2e-6
    denoise: bool = True
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if self.num_levels < 2:
            raise UserError(f"num_levels={self.num_levels}: expected at least 2")

    def __call__(
        self,
        rng: Key[Array, ""],
        score: Score,
        process: Process,
        shape: tuple[int, ...],
    ) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
        def std(t):
            return process.marginal(jnp.ones_like(t), t)[1]

        smallest = std(jnp.zeros(shape[:1]))

        def level(x, inputs):
            time, rng = inputs
            t = jnp.full(shape[:1], time)
            size = self.step_size * jnp.square(std(t) / smallest)
            return _langevin(rng, x, t, score, size, self.num_steps), None

        start_rng, levels_rng = jax.random.split(rng)
        x = jax.random.uniform(start_rng, shape, minval=self.low, maxval=self.high)
        times = jnp.arange(self.num_levels)[::-1] / (self.num_levels - 1)
        rngs = jax.random.split(levels_rng, self.num_levels)
        x, _ = jax.lax.scan(level, x, (times, rngs))
        evaluations = self.num_levels * self.num_steps
        if self.denoise:
            t = jnp.zeros(shape[:1])
            x = x + batch_mul(jnp.square(smallest), score(x, t))
            evaluations += 1
        return x, jnp.array(evaluations)


@dataclass(frozen=True)
class DDIM:
    """Jumps between the marginals of `num_steps` times (arXiv:2010.02502, Eq. 12).

    With x(t) = a x0 + s noise, the score gives both terms, and they are put together
    again at the next time. `eta` is the part of the noise that is drawn anew: 0 is
    deterministic, 1 the ancestral sampler of the chain of these times. The times go
    down evenly from `max_time` to `min_time`; with `denoise` the last jump is to the
    data. Whatever `max_time` is, samples start as the prior. x0 is kept in
    [-`max_data`, `max_data`] and the noise left as it is, which `Clipped` changes too.
    """

    num_steps: int = 50
    eta: float = 0.0
    min_time: float = 1e-3
    denoise: bool = True
    max_time: float = 1.0
    max_data: float = math.inf

    def __call__(
        self,
        rng: Key[Array, ""],
        score: Score,
        process: Process,
        shape: tuple[int, ...],
    ) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
        # The jumps are one fewer than the times, but for the one to the data.
        num_times = self.num_steps + (not self.denoise)
        times = jnp.linspace(self.max_time, self.min_time, num_times)
        a, s = process.marginal(jnp.ones_like(times), times)
        if self.denoise:
            a, s = jnp.append(a, 1.0), jnp.append(s, 0.0)

        def jump(x, inputs):
            time, (a, s), (next_a, next_s), rng = inputs
            noise = -s * score(x, jnp.full(shape[:1], time))
            x0 = jnp.clip((x - s * noise) / a, -self.max_data, self.max_data)
            # The variance of x(next) given x(t) and x0, in the chain of these times.
            added = jnp.square(s) - jnp.square(a / next_a * next_s)
            fresh = self.eta * next_s / s * jnp.sqrt(jnp.maximum(added, 0))
            kept = jnp.sqrt(jnp.maximum(jnp.square(next_s) - jnp.square(fresh), 0))
            drawn = jax.random.normal(rng, shape, x.dtype)
            return next_a * x0 + kept * noise + fresh * drawn, None

        prior_rng, jumps_rng = jax.random.split(rng)
        rngs = jax.random.split(jumps_rng, self.num_steps)
        inputs = (times[: self.num_steps], (a[:-1], s[:-1]), (a[1:], s[1:]), rngs)
        x, _ = jax.lax.scan(jump, process.prior(prior_rng, shape), inputs)
        return x, jnp.array(self.num_steps)


@dataclass(frozen=True)
class Clipped:
    """A sampler whose data, as the score has them at each time, are kept in a range.

    With x(t) = a x0 + s noise, x0 is clipped to [`low`, `high`] and the noise is what
    then makes up the rest of x: DDPM's code (arXiv:2006.11239), and what others call
    static thresholding (arXiv:2205.11487, section 2.3).
    """

    sampler: Sampler
    low: float = -1.0
    high: float = 1.0

    def __call__(
        self,
        rng: Key[Array, ""],
        score: Score,
        process: Process,
        shape: tuple[int, ...],
    ) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
        def clipped(x, t):
            a, s = process.marginal(jnp.ones_like(t), t)
            x0 = batch_mul(1 / a, x + batch_mul(jnp.square(s), score(x, t)))
            x0 = jnp.clip(x0, self.low, self.high)
            return batch_mul(-1 / jnp.square(s), x - batch_mul(a, x0))

        return self.sampler(rng, clipped, process, shape)


@dataclass(frozen=True)
class ProbabilityFlow:
    """The probability flow ODE, with an adaptive solver, from 1 to `min_time`.

    The samples are NaN if the solver fails; see `integrate`. With `denoise` a last
    noise-free step of reverse diffusion, of size `min_time`, leads to time 0
    (arXiv:2011.13456, appendix D.4; on VP's default `min_time` that is the official
    step of a 1000-step chain).
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    min_time: float = 1e-3
    denoise: bool = True
    max_steps: int = 4096

    def __call__(
        self,
        rng: Key[Array, ""],
        score: Score,
        process: Process,
        shape: tuple[int, ...],
    ) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
        flow = probability_flow(process, score)
        x, evaluations = integrate(
            lambda time, x: flow.drift(x, jnp.full(shape[:1], time)),
            process.prior(rng, shape),
            start=1.0,
            stop=self.min_time,
            rtol=self.rtol,
            atol=self.atol,
            max_steps=self.max_steps,
        )
        if not self.denoise:
            return x, evaluations
        t = jnp.full(shape[:1], self.min_time)
        step, _ = reverse_sde(process, score).discretize(x, t, self.min_time)
        return x - step, evaluations + 1


def integrate(
    vector_field: Callable[[Float[Array, ""], Any], Any],
    state: Any,
    start: float,
    stop: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> tuple[Any, Int[Array, ""]]:
    """Solves d state/dt = vector_field(t, state) adaptively, in either direction.

    Dormand and Prince's 5(4) pair, the same as SciPy's RK45, which the official code
    uses. `state` is any tree of arrays and is one system: a step is accepted by the
    root mean square of the error over all its elements, wherever they live. Also
    returned is the number of calls of the vector field.

    A solve that fails, within `max_steps` or because the vector field is not finite,
    returns NaN in every element: raising from compiled code takes a host callback,
    which TPUs do not support and no compilation cache keeps. Not differentiable in
    reverse mode.
    """
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: vector_field(jnp.asarray(t), y)),
        _DormandPrince(),
        t0=start,
        t1=stop,
        dt0=None,
        y0=state,
        stepsize_controller=diffrax.PIDController(
            rtol=rtol,
            atol=atol,
            # A step that cannot move float32 time any more has failed: a vector field
            # of NaN ends here after a few steps instead of after max_steps.
            dtmin=1e-8,
            force_dtmin=False,
        ),
        max_steps=max_steps,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    solved = solution.result == diffrax.RESULTS.successful
    state = jax.tree.map(lambda y: jnp.where(solved, y[-1], jnp.nan), solution.ys)
    return state, 1 + 6 * solution.stats["num_steps"]


class _DormandPrince(diffrax.Dopri5):
    """Dopri5 that evaluates its first stage once, before the first step.

    The parent evaluates it again in every attempt at the first step, so that the
    number of evaluations could not be told from the number of steps.
    """

    def init(self, terms, t0, t1, y0, args):
        return jnp.array(False), terms.vf(t0, y0, args)
