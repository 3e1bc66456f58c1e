"""Optimizers as records that build optax transformations."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import optax

from research.train.schedules import Schedule


@runtime_checkable
class Optimizer(Protocol):
    """A record that builds a gradient transformation.

    `learning_rate` is its schedule, so that the loop can log the rate.
    """

    @property
    def learning_rate(self) -> Schedule: ...

    def __call__(self) -> optax.GradientTransformation: ...


@dataclass(frozen=True)
class Adam:
    """Adam after clipping by global norm (Kingma & Ba 2015).

    `weight_decay` is decoupled (AdamW) and applies to leaves of two or more
    dimensions: kernels, but neither biases nor norm scales.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __call__(self) -> optax.GradientTransformation:
        parts = [optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)]
        if self.clip_norm is not None:
            parts.insert(0, optax.clip_by_global_norm(self.clip_norm))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=_is_kernel))
        parts.append(optax.scale_by_learning_rate(self.learning_rate))
        return optax.chain(*parts)


def _is_kernel(params):
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
