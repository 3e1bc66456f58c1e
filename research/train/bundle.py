"""The evidence of a step that was not finite: its state, its batch, how to run it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from research.errors import UserError
from research.train.state import TrainState
from research.train.workdir import Request, read_request


@dataclass(frozen=True)
class Bundle:
    """A bad step, ready to be run again.

    Attributes:
      request: how to load its experiment.
      batch: the global batch, as host arrays.
      folder: where the state lies.
      step: the number of updates before it.
    """

    request: Request
    batch: dict[str, np.ndarray]
    folder: Path
    step: int

    def state(self, target: TrainState) -> TrainState:
        """The state before the bad step, placed as `target` says."""
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore((self.folder / "state").absolute(), target)


def write(
    workdir: Path, state: TrainState, batch: dict[str, jax.Array], metrics: dict
) -> Path:
    """Writes `workdir/nonfinite/step_<n>`; every process calls it. Returns its path."""
    step = int(state.step)
    folder = workdir / "nonfinite" / f"step_{step:08d}"
    rows = {
        k: multihost_utils.process_allgather(v, tiled=True) for k, v in batch.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        clean = state.replace(skipped=jnp.zeros_like(state.skipped))
        checkpointer.save((folder / "state").absolute(), clean, force=True)
    if jax.process_index() == 0:
        np.savez(folder / "batch.npz", allow_pickle=False, **rows)
        for name in ("experiment.py", "run.json"):
            shutil.copyfile(workdir / name, folder / name)
        (folder / "metrics.json").write_text(json.dumps({"step": step, **metrics}))
    return folder


def read(folder: Path) -> Bundle:
    """A bundle that `write` wrote.

    Raises:
      UserError: it is not one.
    """
    try:
        step = json.loads((folder / "metrics.json").read_text())["step"]
        with np.load(folder / "batch.npz", allow_pickle=False) as arrays:
            batch: dict[str, Any] = dict(arrays)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is not a bundle: {error}; expected a folder nonfinite/step_<n> "
            "of a workdir"
        ) from None
    return Bundle(read_request(folder), batch, folder, step)
