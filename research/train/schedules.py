"""Learning-rate schedules as records: `schedule(step) -> rate`."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.errors import UserError


@runtime_checkable
class Schedule(Protocol):
    """The learning rate of the update that follows `step` updates."""

    def __call__(self, step: ArrayLike) -> jax.Array: ...


@dataclass(frozen=True)
class Constant:
    """`value`, reached over `warmup_steps` linearly.

    With warm-up the first update has rate zero, as in the Score-SDE code, whose rate
    is `value * min(step / warmup_steps, 1)`.
    """

    value: float
    warmup_steps: int = 0

    def __call__(self, step: ArrayLike) -> jax.Array:
        if not self.warmup_steps:
            return jnp.full((), self.value)
        return self.value * jnp.minimum(jnp.asarray(step) / self.warmup_steps, 1.0)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up to `peak`, then a half cosine down to `end` at `num_steps`."""

    peak: float
    num_steps: int
    warmup_steps: int = 0
    end: float = 0.0

    def __call__(self, step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        warm = self.peak * step / max(1, self.warmup_steps)
        span = max(1, self.num_steps - self.warmup_steps)
        progress = jnp.clip((step - self.warmup_steps) / span, 0.0, 1.0)
        cold = self.end + (self.peak - self.end) * 0.5 * (
            1 + jnp.cos(jnp.pi * progress)
        )
        return jnp.where(step < self.warmup_steps, warm, cold)


@dataclass(frozen=True)
class Warmup:
    """A line from `initial` to where `schedule` begins, which starts after it.

    With `Cosine` what timm calls a warm-up prefix, from a rate other than zero.
    """

    schedule: Schedule
    num_steps: int
    initial: float = 0.0

    def __call__(self, step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        slope = (self.schedule(0) - self.initial) / max(1, self.num_steps)
        after = self.schedule(jnp.maximum(step - self.num_steps, 0))
        return jnp.where(step < self.num_steps, self.initial + slope * step, after)


@dataclass(frozen=True)
class Linear:
    """Linear warm-up to `peak`, then a line down to `end` at `num_steps`."""

    peak: float
    num_steps: int
    warmup_steps: int = 0
    end: float = 0.0

    def __call__(self, step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        warm = self.peak * step / max(1, self.warmup_steps)
        span = max(1, self.num_steps - self.warmup_steps)
        progress = jnp.clip((step - self.warmup_steps) / span, 0.0, 1.0)
        cold = self.peak + (self.end - self.peak) * progress
        return jnp.where(step < self.warmup_steps, warm, cold)


@dataclass(frozen=True)
class InverseSqrt:
    """A line from `initial` to `peak`, then the inverse square root of the step.

    With w warm-up steps, `peak * sqrt((w + shift) / (step + shift))` from step w on.
    `initial` = `peak` leaves the warm-up flat, as T5 does (Raffel et al. 2020,
    arXiv:1910.10683, section 3.1.2); without warm-up, `shift` is the step by which the
    rate has fallen to peak / sqrt(2) (T-Fixup's code).
    """

    peak: float
    warmup_steps: int = 0
    initial: float = 0.0
    shift: int = 0

    def __call__(self, step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        slope = (self.peak - self.initial) / max(1, self.warmup_steps)
        start = max(1, self.warmup_steps + self.shift)
        since = jnp.maximum(step + self.shift, start)
        return jnp.where(
            step < self.warmup_steps,
            self.initial + slope * step,
            self.peak * jnp.sqrt(start / since),
        )


@dataclass(frozen=True)
class Noam:
    """factor * embed_dim^-0.5 * min(t^-0.5, t * warmup_steps^-1.5), t from one.

    Vaswani et al. 2017, arXiv:1706.03762, Eq. 3; factor 2 and 8000 steps in the third
    version of their code's base setting.
    """

    embed_dim: int
    warmup_steps: int = 4000
    factor: float = 1.0

    def __call__(self, step: ArrayLike) -> jax.Array:
        t = jnp.asarray(step) + 1.0
        falls = jnp.minimum(t**-0.5, t * self.warmup_steps**-1.5)
        return self.factor * self.embed_dim**-0.5 * falls


@dataclass(frozen=True)
class Piecewise:
    """Rates by the step from which they hold: `((0, 1.0), (8000, 0.5), ...)`.

    With `linear`, lines between these points, and constant outside of them.

    Raises:
      UserError: no points, or steps that do not increase.
    """

    points: tuple[tuple[int, float], ...]
    linear: bool = False

    def __post_init__(self):
        steps = [step for step, _ in self.points]
        if not steps or steps != sorted(set(steps)):
            raise UserError(
                f"Piecewise points at steps {steps}: expected at least one, each step "
                "larger than the one before it"
            )

    def __call__(self, step: ArrayLike) -> jax.Array:
        steps = jnp.asarray([point[0] for point in self.points], jnp.float32)
        rates = jnp.asarray([point[1] for point in self.points], jnp.float32)
        now = jnp.asarray(step, jnp.float32)
        if self.linear:
            return jnp.interp(now, steps, rates)
        return rates[jnp.maximum(jnp.searchsorted(steps, now, side="right") - 1, 0)]


@dataclass(frozen=True)
class Exponential:
    """`value * factor^((step - start) / period)` from `start` on, `value` before it.

    `stairs` rounds the exponent down: a factor every `period` steps, for the first time
    at start + period.
    """

    value: float
    factor: float
    period: int
    start: int = 0
    stairs: bool = False

    def __call__(self, step: ArrayLike) -> jax.Array:
        passed = jnp.maximum(jnp.asarray(step) - self.start, 0) / self.period
        return self.value * self.factor ** (
            jnp.floor(passed) if self.stairs else passed
        )
