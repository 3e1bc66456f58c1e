"""From an experiment to a compiled, sharded program."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from research.errors import UserError
from research.experiment import Experiment
from research.train import flops, sharding
from research.train.state import TrainState, make_init, merge, split
from research.train.step import make_step

COMPILER_OPTIONS: Mapping[str, dict[str, str | bool]] = {
    # XLA's YNN convolutions keep to one core at the widths of a small network, and
    # its concurrency scheduler makes thunks wait for each other: without both, a step
    # of `vp_ddpmpp_digits` on two cores takes three quarters of the time.
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": (
            "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        ),
        "xla_cpu_enable_concurrency_optimized_scheduler": False,
    },
}
"""What the step's compiler is told, by platform."""


@dataclass(frozen=True)
class Program:
    """An experiment on a mesh, nothing computed yet.

    Attributes:
      state: the abstract `TrainState`: shapes, types and shardings of every leaf.
      batch: the same of one global batch.
      init: `init() -> TrainState`, jitted; the state is born in its shards.
      step: `step(state, batch) -> (state, metrics)`, jitted; the state is donated.
    """

    experiment: Experiment
    mesh: Mesh
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    init: Any
    step: Any

    @cached_property
    def flops(self) -> int:
        """Model FLOPs of one step, by the rule of `research.train.flops`."""
        return _step_flops(self.experiment, self.state, self.batch)

    def num_params(self) -> int:
        """Parameters of the task, frozen ones included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def compile(self) -> Any:
        """The step as an executable: it cannot recompile, only refuse its arguments."""
        platform = self.mesh.devices.flat[0].platform
        return self.step.lower(self.state, self.batch).compile(
            compiler_options=COMPILER_OPTIONS.get(platform)
        )


def build(experiment: Experiment, mesh: Mesh | None = None) -> Program:
    """Shapes, shardings and jitted functions of an experiment; allocates nothing.

    Raises:
      UserError: a mesh, a batch size or a rule that does not fit.
    """
    mesh = mesh if mesh is not None else sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(experiment.data.batch_size, mesh)
    optimizer = experiment.optimizer()
    init = make_init(
        experiment.task, optimizer, trainable=experiment.trainable, ema=experiment.ema
    )
    step = make_step(
        experiment.task,
        optimizer,
        seed=experiment.seed,
        trainable=experiment.trainable,
        ema=experiment.ema,
        num_microbatches=experiment.num_microbatches,
        on_nonfinite=experiment.on_nonfinite,
    )
    batch = batch_shapes(experiment, experiment.data.batch_size, mesh)

    def fresh() -> TrainState:
        # Steps fold in 0, 1, 2, ...; initialisation has the last number.
        rng = jax.random.fold_in(jax.random.key(experiment.seed), np.uint32(2**32 - 1))
        zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in batch.items()}
        return init(rng, zeros)

    shapes = jax.eval_shape(fresh)
    placed = sharding.tree_sharding(shapes, mesh)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        shapes,
        placed,
    )
    whole = sharding.replicated(mesh)
    return Program(
        experiment=experiment,
        mesh=mesh,
        state=state,
        batch=batch,
        init=jax.jit(fresh, out_shardings=placed),
        step=jax.jit(
            step,
            in_shardings=(placed, sharding.batch_sharding(mesh)),
            out_shardings=(placed, whole),
            donate_argnums=0,
        ),
    )


def batch_shapes(
    experiment: Experiment, batch_size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a global batch of `batch_size` rows looks like."""
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=place)
        for name, (shape, dtype) in experiment.data.shapes().items()
    }


def synthetic_batch(program: Program, seed: int = 0) -> dict[str, jax.Array]:
    """A random batch of the right shapes: for timing, not for learning."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.integer):
            high = 256 if leaf.dtype == np.uint8 else 2
            return rng.integers(0, high, leaf.shape).astype(leaf.dtype)
        return rng.standard_normal(leaf.shape).astype(leaf.dtype)

    return {
        name: jax.device_put(draw(leaf), leaf.sharding)
        for name, leaf in program.batch.items()
    }


def enable_compile_cache(folder: Path) -> None:
    """Keeps compiled programs in `folder`, unless JAX already has such a folder."""
    present = jax.config.jax_compilation_cache_dir  # pyright: ignore
    if present is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the compilation cache {folder} cannot be made: {error}; set "
                "JAX_COMPILATION_CACHE_DIR to a folder that can"
            ) from None
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _step_flops(
    experiment: Experiment, state: TrainState, batch: Mapping[str, Any]
) -> int:
    def loss(moving, frozen, extra, batch):
        variables = {"params": merge(moving, frozen), **extra}
        return experiment.task.loss(variables, batch, jax.random.key(0), True)[0]

    moving, frozen = split(state.params, experiment.trainable)
    return flops.count(jax.grad(loss), moving, frozen, state.extra, batch)
