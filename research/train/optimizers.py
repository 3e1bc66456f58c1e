"""Optimizers as records that build optax transformations."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import optax

from research.errors import UserError
from research.train.schedules import Schedule
from research.train.sharding import path_name
from research.train.state import merge

Multipliers = tuple[tuple[str, float], ...]
"""`(path pattern, factor)`, first match wins; patterns are searched for, as for
`trainable`. Paths begin below `params`, such as `body/layers/block_0/mlp/up/kernel`."""

Decays = Callable[[str, Any], bool]
"""Whether a leaf loses weight, by its path, which begins as those of `Multipliers`."""


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

    `weight_decay` is decoupled (AdamW) and applies to kernels and tables: leaves of two
    or more dimensions, the axis of a stack's layers apart.

    `multipliers` are factors of the learning rate for the leaves whose paths match. The
    decay has none of them: with muP's, weights of every width shrink alike (Yang et al.
    2022, arXiv:2203.03466, official code).
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    multipliers: Multipliers = ()

    def __call__(self) -> optax.GradientTransformation:
        parts = [optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)]
        if self.multipliers:
            parts.append(scale_by_path(self.multipliers))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=_is_kernel))
        return _chain(self.clip_norm, parts, self.learning_rate)


def kernels(path: str, leaf: Any) -> bool:
    """Kernels and tables: two dimensions or more, a stack's axis of layers apart."""
    return leaf.ndim - bool(_stack_size(path, leaf)) >= 2


def everything(path: str, leaf: Any) -> bool:
    """Biases and the scales of norms too."""
    del path, leaf
    return True


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, after clipping by global norm.

    Loshchilov & Hutter 2019, arXiv:1711.05101, with a rate for each group of
    parameters as in PyTorch: the decay is of that rate too.

    Attributes:
      weight_decay: what fraction of a leaf goes at each step, times its rate.
      decays: which leaves lose weight.
      no_decay: patterns of paths that do not, even so.
      rates: factors of the learning rate; see `layer_decay` for one by depth.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decays: Decays = kernels
    no_decay: tuple[str, ...] = ()
    rates: Multipliers = ()
    clip_norm: float | None = None

    def __call__(self) -> optax.GradientTransformation:
        parts = [
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=self._decaying),
        ]
        if self.rates:
            parts.append(scale_by_path(self.rates))
        return _chain(self.clip_norm, parts, self.learning_rate)

    def _decaying(self, params: Any) -> Any:
        for pattern in self.no_decay:
            names = _names(params)
            if not any(re.search(pattern, name) for name in names):
                raise UserError(
                    f"no_decay: {pattern!r} matches no parameter that moves: patterns "
                    f"are searched for in paths such as {names[0]!r}"
                )

        def loses(path: Any, leaf: Any) -> bool:
            name = path_name(path)
            spared = any(re.search(pattern, name) for pattern in self.no_decay)
            return self.decays(name, leaf) and not spared

        return jax.tree_util.tree_map_with_path(loses, params)


def layer_decay(depths: tuple[tuple[str, int], ...], factor: float) -> Multipliers:
    """Rates that fall by `factor` from a layer to the one below it (Clark et al. 2020).

    As of BEiT (Bao et al. 2022, arXiv:2106.08254) and timm.

    Args:
      depths: `(path pattern, depth)`, first match wins; what none matches counts as
        the deepest: such as a head.
      factor: of a layer one less deep.
    """
    top = max((depth for _, depth in depths), default=0)
    return tuple((pattern, factor ** (top - depth)) for pattern, depth in depths)


@dataclass(frozen=True)
class Sgd:
    """Gradient descent after clipping by global norm, with momentum.

    `weight_decay` is a part of the gradient, of kernels and tables only.
    """

    learning_rate: Schedule
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __call__(self) -> optax.GradientTransformation:
        parts = []
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=_is_kernel))
        if self.momentum:
            parts.append(optax.trace(self.momentum, self.nesterov))
        return _chain(self.clip_norm, parts, self.learning_rate)


@dataclass(frozen=True)
class RAdam:
    """Adam whose adaptive rate is rectified, or off while its variance is unknown.

    Liu et al. 2020, arXiv:1908.03265, Algorithm 2. `threshold` is the length of the
    moving average from which the rate adapts: 4 in the paper, 5 in its code.
    `weight_decay` is decoupled, of kernels and tables.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    threshold: float = 5.0
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __call__(self) -> optax.GradientTransformation:
        radam = optax.scale_by_radam(
            self.b1, self.b2, self.eps, threshold=self.threshold
        )
        parts = [radam]
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=_is_kernel))
        return _chain(self.clip_norm, parts, self.learning_rate)


@dataclass(frozen=True)
class Adadelta:
    """Zeiler 2012, arXiv:1212.5701, Algorithm 1, its steps times a learning rate."""

    learning_rate: Schedule
    rho: float = 0.95
    eps: float = 1e-6
    clip_norm: float | None = None

    def __call__(self) -> optax.GradientTransformation:
        adadelta = optax.scale_by_adadelta(self.rho, self.eps)
        return _chain(self.clip_norm, [adadelta], self.learning_rate)


@dataclass(frozen=True)
class Adafactor:
    """Second moments of a matrix from those of its rows and columns.

    Shazeer & Stern 2018, arXiv:1804.04235, Algorithm 4: beta_2 = 1 - t^-decay, updates
    clipped by their root mean square, and, with `relative`, times that of the
    parameter. Each layer of a scanned stack is a matrix of its own.

    Attributes:
      momentum: of the updates; None is for none.
      weight_decay: what fraction of the kernels goes at each step, whatever the rate.
      min_dim_size: of the smaller side of a matrix that is factored.
    """

    learning_rate: Schedule
    decay: float = 0.8
    relative: bool = True
    clip_rms: float | None = 1.0
    momentum: float | None = None
    weight_decay: float = 0.0
    min_dim_size: int = 128
    clip_norm: float | None = None

    def __call__(self) -> optax.GradientTransformation:
        factored = [
            optax.scale_by_factored_rms(
                decay_rate=self.decay, min_dim_size_to_factor=self.min_dim_size
            )
        ]
        if self.clip_rms is not None:
            factored.append(optax.clip_by_block_rms(self.clip_rms))
        if self.relative:
            factored.append(optax.scale_by_param_block_rms())
        parts = [
            _per_layer(optax.chain(*factored)),
            optax.scale_by_learning_rate(self.learning_rate),
        ]
        if self.momentum is not None:
            parts.append(optax.ema(self.momentum, debias=False))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(-self.weight_decay, mask=_is_kernel))
        if self.clip_norm is not None:
            parts.insert(0, optax.clip_by_global_norm(self.clip_norm))
        return optax.chain(*parts)


@dataclass(frozen=True)
class Lamb:
    """Adam whose update of each kernel is as long as the kernel, times the rate.

    You et al. 2020, arXiv:1904.00962, Algorithm 2, with decoupled decay. Biases and
    norms' scales are left to Adam, without decay, as in the code for BERT. Each layer
    of a scanned stack is a kernel of its own.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float | None = None

    def __call__(self) -> optax.GradientTransformation:
        ratio = _per_layer(optax.scale_by_trust_ratio())
        parts = [
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=_is_kernel),
            optax.masked(ratio, _is_kernel),
        ]
        return _chain(self.clip_norm, parts, self.learning_rate)


def scale_by_path(multipliers: Multipliers) -> optax.GradientTransformation:
    """Each leaf's update times the factor of the first pattern in its path, else 1.

    Raises:
      UserError: at init, a pattern that is the first in no path.
    """

    def find(name: str) -> tuple[str, float]:
        for pattern, factor in multipliers:
            if re.search(pattern, name):
                return pattern, factor
        return "", 1.0

    def init(params: Any) -> optax.EmptyState:
        names = _names(params)
        found = {find(name)[0] for name in names}
        for pattern, _ in multipliers:
            if pattern not in found:
                raise UserError(
                    f"multipliers: {pattern!r} matches no parameter that moves and that"
                    " no pattern before it has: patterns are searched for in paths such"
                    f" as {names[0]!r}"
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * find(path_name(path))[1], updates
        )
        return scaled, state

    return optax.GradientTransformation(init, update)


def _chain(
    clip_norm: float | None,
    parts: list[optax.GradientTransformation],
    learning_rate: Schedule,
) -> optax.GradientTransformation:
    first = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    return optax.chain(*first, *parts, optax.scale_by_learning_rate(learning_rate))


# Layers of a scanned stack are slices of its leaves


def _stack_size(path: str, leaf: Any) -> int:
    """How many layers a leaf holds in its first axis; 0 for one that is no stack's."""
    return leaf.shape[0] if re.search(r"(^|/)layers/", path) else 0


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: kernels(path_name(path), leaf), params
    )


def _names(params: Any) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _per_layer(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """`inner`, to which each layer of a stack is a leaf of its own."""

    def groups(tree: Any) -> dict[int, Any]:
        """The tree by size of stack, None in the place of other leaves."""
        sizes = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _stack_size(path_name(path), leaf), tree
        )
        return {
            size: jax.tree.map(lambda n, x, s=size: x if n == s else None, sizes, tree)
            for size in sorted(set(jax.tree.leaves(sizes)))
        }

    def mapped(function: Any, size: int) -> Any:
        return jax.vmap(function) if size else function

    def init(params: Any) -> dict[str, Any]:
        parts = groups(params).items()
        return {str(size): mapped(inner.init, size)(part) for size, part in parts}

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        weights, done, new = groups(params), None, {}
        for size, part in groups(updates).items():
            apply = mapped(inner.update, size)
            part, new[str(size)] = apply(part, state[str(size)], weights[size])
            done = part if done is None else merge(part, done)
        return done, new

    return optax.GradientTransformation(init, update)
