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

from research.data.loader import Bucket
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


BatchShapes = dict[str, jax.ShapeDtypeStruct]
"""The parts of a global batch, abstract."""

_RowShapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Program:
    """An experiment on a mesh, nothing computed yet.

    Attributes:
      state: the abstract `TrainState`: shapes, types and shardings of every leaf.
      buckets: the shapes that global batches have, the largest last.
      batches: the same of each, abstract and sharded.
      init: `init() -> TrainState`, jitted; the state is born in its shards.
      step: `step(state, batch) -> (state, metrics)`, jitted; the state is donated.
    """

    experiment: Experiment
    mesh: Mesh
    state: TrainState
    buckets: tuple[Bucket, ...]
    batches: tuple[BatchShapes, ...]
    init: Any
    step: Any

    @property
    def batch(self) -> BatchShapes:
        """The largest of `batches`."""
        return self.batches[-1]

    @property
    def flops(self) -> int:
        """Model FLOPs of one step on the largest batch, as `flops_of`."""
        return self.flops_of(self.batch)

    def flops_of(self, batch: Mapping[str, Any]) -> int:
        """Model FLOPs of one step, by the rule of `research.train.flops`."""
        return self._flops[_row_shapes(batch)]

    @cached_property
    def _flops(self) -> dict[_RowShapes, int]:
        return {
            _row_shapes(batch): _step_flops(self.experiment, self.state, batch)
            for batch in self.batches
        }

    def batch_size_of(self, batch: Mapping[str, Any]) -> int:
        """The rows of the global batch that has such rows as these."""
        places = [_row_shapes(shapes) for shapes in self.batches]
        return self.buckets[places.index(_row_shapes(batch))].batch_size

    def num_params(self) -> int:
        """Parameters of the task, frozen ones included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def compile(self) -> "Executables":
        """The step for every shape of batch."""
        return Executables({_row_shapes(b): self.compile_for(b) for b in self.batches})

    def compile_for(self, batch: BatchShapes) -> Any:
        """The step as an executable: it cannot recompile, only refuse its arguments."""
        platform = self.mesh.devices.flat[0].platform
        return self.step.lower(self.state, batch).compile(
            compiler_options=COMPILER_OPTIONS.get(platform)
        )


class Executables:
    """The compiled step, one executable for each shape of batch."""

    def __init__(self, by_shape: dict[_RowShapes, Any]):
        self._by_shape = by_shape

    def __len__(self) -> int:
        return len(self._by_shape)

    def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> Any:
        """As `Program.step`, but nothing is compiled: unknown shapes are refused."""
        *_, largest = self._by_shape.values()
        return self._by_shape.get(_row_shapes(batch), largest)(state, batch)


def build(experiment: Experiment, mesh: Mesh | None = None) -> Program:
    """Shapes, shardings and jitted functions of an experiment; allocates nothing.

    Raises:
      UserError: a mesh, a batch size or a rule that does not fit.
    """
    mesh = mesh if mesh is not None else sharding.make_mesh(experiment.mesh)
    buckets = experiment.data.buckets()
    for bucket in buckets:
        sharding.check_batch_size(bucket.batch_size, mesh)
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
    largest = _batch_shapes(buckets[-1], mesh)

    def fresh() -> TrainState:
        # Steps fold in 0, 1, 2, ...; initialisation has the last number.
        rng = jax.random.fold_in(jax.random.key(experiment.seed), np.uint32(2**32 - 1))
        zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in largest.items()}
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
        buckets=buckets,
        batches=tuple(_batch_shapes(bucket, mesh) for bucket in buckets),
        init=jax.jit(fresh, out_shardings=placed),
        step=jax.jit(
            step,
            in_shardings=(placed, sharding.batch_sharding(mesh)),
            out_shardings=(placed, whole),
            donate_argnums=0,
        ),
    )


def _batch_shapes(bucket: Bucket, mesh: Mesh) -> BatchShapes:
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((bucket.batch_size, *shape), dtype, sharding=place)
        for name, (shape, dtype) in bucket.spec.items()
    }


def _row_shapes(batch: Mapping[str, Any]) -> _RowShapes:
    """What tells the shapes of batches apart, whether all rows are here or some."""
    return tuple(sorted((name, tuple(x.shape[1:])) for name, x in batch.items()))


def synthetic_batch(program: Program, seed: int = 0) -> dict[str, jax.Array]:
    """A random batch of the largest shape: for timing, not for learning."""
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
