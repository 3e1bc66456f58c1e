"""An experiment whose every byte and FLOP is known: one matrix, fitted by Adam."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from research.data.loader import Data
from research.experiment import Experiment
from research.train.optimizers import Adam
from research.train.schedules import Constant
from research.train.state import Ema

ROWS, INPUTS, OUTPUTS = 16, 256, 64


@dataclass(frozen=True)
class Linear:
    """Least squares: `batch["x"]` times a matrix is to be one."""

    num_layers: int = 0
    """More matrices, INPUTS squared, stacked and scanned over."""

    def init(self, rng, batch):
        params = {"matrix": jax.random.normal(rng, (INPUTS, OUTPUTS))}
        if self.num_layers:
            params["stack"] = jnp.zeros((self.num_layers, INPUTS, INPUTS))
        return {"params": params}

    def loss(self, variables, batch, rng, train):
        params, x = variables["params"], batch["x"]
        if self.num_layers:
            x, _ = jax.lax.scan(lambda x, w: (x + x @ w, None), x, params["stack"])
        rows = jnp.mean((x @ params["matrix"] - 1) ** 2, axis=-1)
        total, count = jnp.sum(rows), jnp.asarray(float(len(rows)))
        return total / count, ({"loss": (total, count)}, {})


def experiment(num_layers: int = 0, batch_size: int = ROWS) -> Experiment:
    return Experiment(
        task=Linear(num_layers),
        data=Data(
            train=[{"x": np.ones(INPUTS, np.float32)}],
            spec={"x": ((INPUTS,), "float32")},
            batch_size=batch_size,
        ),
        optimizer=Adam(Constant(1e-2)),
        num_steps=10,
        ema=Ema(0.9),
        name="linear",
    )
