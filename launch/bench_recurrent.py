"""Time recurrent layers, forward and backward, alone or beside PyTorch's own.

    python -m launch.bench_recurrent --torch

RNN, LSTM and GRU as `torch.nn` has them: what a batch of sequences costs with the
gradients of parameters and inputs. `--torch` needs the packages of
`pip install -e '.[parity]'`.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from launch.bench import find_peer
from launch.cli import run, start
from launch.timing import Contender, Timing, race
from research.errors import UserError
from research.layers.recurrent import (
    Cell,
    GruCell,
    LstmCell,
    RecurrentStack,
    RnnCell,
)

PEER = "launch.peers.recurrent:layers"

CELLS: Mapping[str, Cell] = {
    "RNN": RnnCell(recurrent_bias=True),
    "LSTM": LstmCell(recurrent_bias=True),
    "GRU": GruCell(recurrent_bias=True),
}


@dataclass(frozen=True)
class Workload:
    """What all have to do.

    Attributes:
      x: float32 (batch, length, input dim).
      weight: the outputs are weighted by it and summed; (batch, length, hidden dim).
      num_layers: one above the other.
    """

    x: np.ndarray
    weight: np.ndarray
    num_layers: int

    @property
    def hidden_dim(self) -> int:
        """Of every layer."""
        return self.weight.shape[-1]


def ours(work: Workload, cell: Cell) -> Contender:
    """The gradients by our layers."""
    stack = RecurrentStack(work.hidden_dim, work.num_layers, cell)
    x, weight = jnp.asarray(work.x), jnp.asarray(work.weight)
    params = jax.jit(stack.init)(jax.random.key(0), x)

    @jax.jit
    def gradients(params: Any, x: jax.Array) -> Any:
        def total(params: Any, x: jax.Array) -> jax.Array:
            outputs: Any = stack.apply(params, x)
            return (outputs[0] * weight).sum()

        return jax.value_and_grad(total, argnums=(0, 1))(params, x)

    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Contender(
        "ours", lambda: jax.block_until_ready(gradients(params, x)), num_params, 0
    )


def main(
    batch_size: int = 32,
    length: int = 128,
    dim: int = 256,
    num_layers: int = 1,
    repeats: int = 20,
    torch: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time the gradients of recurrent layers.

    Args:
      batch_size: Sequences.
      length: Of each.
      dim: Of inputs and states.
      num_layers: One above the other.
      repeats: Timed passes of each, after two to warm up.
      torch: Beside torch.nn's, eager and compiled.
      as_json: Print the timings as JSON.
    """
    if min(batch_size, length, dim, num_layers, repeats) < 1:
        raise UserError("batch size, length, dim, layers and repeats: at least 1")
    start()
    load = os.getloadavg()[0]
    rng = np.random.default_rng(0)
    shape = (batch_size, length, dim)
    x, weight = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    work = Workload(x, weight, num_layers)
    peer: Any = find_peer(PEER) if torch else lambda *_: ()
    rows = {
        name: race(
            [ours(work, cell), *peer(work, name)],
            batch_size * length,
            repeats,
            tell=lambda line, name=name: print(f"{name}, {line}", file=sys.stderr),
        )
        for name, cell in CELLS.items()
    }
    if as_json:
        told = {name: [asdict(timing) for timing in row] for name, row in rows.items()}
        print(json.dumps({"load": load, "rows": told}))
        return
    print(
        f"{batch_size} sequences of {length}, width {dim}, {num_layers} layers, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, load before it "
        f"{load:.2f} of {os.cpu_count()} cores"
    )
    for name, row in rows.items():
        print(f"{name}: {', '.join(_told(row))}")


def _told(row: Sequence[Timing]) -> list[str]:
    def text(timing: Timing) -> str:
        return f"{timing.name} {1e3 * timing.median:.1f} ms"

    first, *others = row
    return [text(first)] + [
        f"{text(other)} ({other.median / first.median:.3f} x ours)" for other in others
    ]


if __name__ == "__main__":
    run(main)
