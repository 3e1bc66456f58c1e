"""Learning-rate schedules as records: `schedule(step) -> rate`."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


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
