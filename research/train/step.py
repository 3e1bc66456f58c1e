"""The one training step: a pure function from state and batch to state and metrics."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from research.errors import UserError
from research.tasks.base import Batch, Metrics, Task
from research.train.state import Ema, TrainState, merge, split

NonFinitePolicy = Literal["stop", "skip"]


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    trainable: str = "",
    ema: Ema | None = None,
    num_microbatches: int = 1,
    on_nonfinite: NonFinitePolicy = "stop",
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> (state, metrics)`.

    All randomness comes from `fold_in(key(seed), state.step)`: none is stored, and a
    resumed run draws what the straight one would have drawn. Microbatch i folds in i.

    A loss or gradient that is not finite withholds the whole update. Under "skip" the
    run goes on with the next batch; under "stop" the state stays as it was before the
    bad batch, through any step that was dispatched before the host noticed. The
    decision is made from global values, so all hosts make the same.
    """

    def gradients(moving, frozen, extra, batch, rng):
        def loss_fn(moving):
            variables = {"params": merge(moving, frozen), **extra}
            return task.loss(variables, batch, rng, True)

        (_, (metrics, changed)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            moving
        )
        return grads, metrics, {**extra, **changed}

    def accumulate(moving, frozen, extra, batch, rng):
        """The gradient of the mean over all microbatches, weighted by their counts."""
        batch = jax.tree.map(lambda x: _to_microbatches(x, num_microbatches), batch)

        def body(carry, inputs):
            sums, pairs, extra = carry
            part, index = inputs
            grads, metrics, extra = gradients(
                moving, frozen, extra, part, jax.random.fold_in(rng, index)
            )
            weight = metrics["loss"][1]
            sums = jax.tree.map(lambda s, g: s + weight * g, sums, grads)
            return (sums, jax.tree.map(jnp.add, pairs, metrics), extra), None

        first = jax.tree.map(lambda x: x[0], batch)
        _, pairs, _ = jax.eval_shape(gradients, moving, frozen, extra, first, rng)
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), pairs)
        carry = (jax.tree.map(jnp.zeros_like, moving), zeros, extra)
        (sums, metrics, extra), _ = jax.lax.scan(
            body, carry, (batch, jnp.arange(num_microbatches))
        )
        count = metrics["loss"][1]
        return jax.tree.map(lambda s: s / count, sums), metrics, extra

    compute = gradients if num_microbatches == 1 else accumulate

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        moving, frozen = split(state.params, trainable)
        grads, metrics, extra = compute(moving, frozen, state.extra, batch, rng)

        updates, opt_state = optimizer.update(grads, state.opt_state, moving)
        params = optax.apply_updates(moving, updates)
        average = ema and ema(state.ema, params, state.step)
        new = TrainState(
            step=state.step + 1,
            skipped=state.skipped,
            params=merge(params, frozen),
            opt_state=opt_state,
            ema=average,
            extra=extra,
        )

        norms = {f"grad_norm/{name}": value for name, value in _group_norms(grads)}
        norms["grad_norm"] = optax.tree.norm(grads)
        norms["update_norm"] = optax.tree.norm(updates)
        norms["param_norm"] = optax.tree.norm(params)
        total, count = metrics["loss"]
        finite = jnp.isfinite(total / count) & jnp.isfinite(norms["grad_norm"])
        if on_nonfinite == "skip":
            kept = state.replace(step=state.step + 1, skipped=state.skipped + 1)
        else:
            finite &= state.skipped == 0
            kept = state.replace(skipped=jnp.ones((), jnp.int32))
        state = jax.tree.map(lambda n, k: jnp.where(finite, n, k), new, kept)
        one = jnp.ones(())
        metrics = {**metrics, **{name: (norm, one) for name, norm in norms.items()}}
        metrics["skipped"] = (state.skipped.astype(jnp.float32), one)
        return state, metrics

    return step


def _to_microbatches(x: Any, number: int) -> Any:
    if x.shape[0] % number:
        raise UserError(
            f"a batch of {x.shape[0]} cannot be cut into num_microbatches={number} "
            "equal parts: choose a divisor"
        )
    # Row r goes to microbatch r % number, so each device keeps rows that it has.
    return jnp.swapaxes(x.reshape(-1, number, *x.shape[1:]), 0, 1)


def _group_norms(grads: Any) -> list[tuple[str, jax.Array]]:
    """The norm of each top-level module's gradient, frozen ones left out."""
    return [
        (name, optax.tree.norm(group))
        for name, group in grads.items()
        if jax.tree.leaves(group)
    ]
