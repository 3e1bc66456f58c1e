"""A task and pieces around it that train in milliseconds."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.train import sharding
from research.train.optimizers import Adam
from research.train.schedules import Constant
from research.train.state import Ema, TrainState, make_init
from research.train.step import make_step


class Network(nn.Module):
    """Two layers with dropout and a collection that counts its calls."""

    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        calls = self.variable("counts", "calls", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            calls.value += 1
        x = nn.relu(nn.Dense(64, name="first")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(8, name="second")(x)


@dataclass(frozen=True)
class Autoencode:
    """Mean squared error of an autoencoder of `batch["x"]` (batch, 8)."""

    network: Network = Network()

    def init(self, rng, batch):
        return self.network.init(rng, batch["x"], train=False)

    def loss(self, variables, batch, rng, train):
        output, changed = self.network.apply(
            variables,
            batch["x"],
            train=train,
            rngs={"dropout": rng},
            mutable=["counts"],
        )
        rows = jnp.sum(jnp.square(output - batch["x"]), axis=-1)
        mask = batch.get("mask", jnp.ones_like(rows))
        total, count = jnp.sum(rows * mask), jnp.sum(mask)
        return total / count, ({"loss": (total, count)}, changed)


def batch(step: int, size: int = 16) -> dict[str, np.ndarray]:
    """The batch of one step."""
    rng = np.random.default_rng(step)
    return {"x": rng.standard_normal((size, 8)).astype(np.float32)}


def run(
    mesh_shape: dict[str, int],
    num_devices: int,
    *,
    num_steps: int = 5,
    task: Any = None,
    batches=batch,
    **settings: Any,
) -> tuple[TrainState, list[dict]]:
    """The final state, and the metrics of each step, on the host."""
    task = task or Autoencode()
    adam = Adam(Constant(1e-2, warmup_steps=3), clip_norm=1.0)()
    shared = {"ema": Ema(0.9), **settings}
    chosen = {k: v for k, v in shared.items() if k in ("ema", "trainable")}
    mesh = sharding.make_mesh(mesh_shape, jax.devices()[:num_devices])
    init = make_init(task, adam, **chosen)
    shapes = jax.eval_shape(init, jax.random.key(0), batches(0))
    placed = sharding.tree_sharding(shapes, mesh)
    state = jax.jit(init, out_shardings=placed)(jax.random.key(0), batches(0))
    step = jax.jit(
        make_step(task, adam, **shared),
        in_shardings=(placed, sharding.batch_sharding(mesh)),
        out_shardings=(placed, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    history = []
    for index in range(num_steps):
        data = batches(index)
        size = len(data["x"])
        state, metrics = step(state, sharding.to_global(data, mesh, size))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history
