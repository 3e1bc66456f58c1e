"""Drawing from a generative model, and a picture of what came."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, UInt8
from PIL import Image

from research.diffusion.pixels import Pixels
from research.evals.base import Context
from research.tasks.base import Variables
from research.train.sharding import batch_sharding, replicated


@runtime_checkable
class SamplingTask(Protocol):
    """A task that draws images from its model."""

    @property
    def pixels(self) -> Pixels:
        """How many levels an image has."""
        ...

    def sample(
        self, variables: Variables, rng: Key[Array, ""], num: int
    ) -> dict[str, Array]:
        """`image`: uint8 (num, height, width, channels), in `pixels.levels` levels.

        Anything else has either a leading dimension `num`, or none: `nfe`, the
        network evaluations that the draw took.
        """
        ...


@dataclass(frozen=True)
class SampleGrid:
    """Draws `num` images into `<step>.png` and reports the draw's scalars.

    These are whatever `task.sample` returns beside rows: `nfe`, the network
    evaluations, and `finite`, 1 unless the sampler diverged in some batch.
    """

    num: int = 64
    batch_size: int = 64
    every: int = 0

    def __call__(
        self, task: SamplingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        rng = jax.random.key(context.seed)
        drawn = draw_samples(
            task, variables, rng, self.num, self.batch_size, context.mesh
        )
        if jax.process_index() == 0:
            context.folder.mkdir(parents=True, exist_ok=True)
            images = full_range(drawn["image"], task.pixels.levels)
            save_grid(images, context.folder / f"{context.step:08d}.png")
        return scalars(drawn)


def draw_samples(
    task: SamplingTask,
    variables: Variables,
    rng: Key[Array, ""],
    num: int,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """`num` samples as host arrays, the same on every process.

    They are drawn `batch_size` at a time, each batch split over the mesh. Sample i is a
    function of `rng`, `batch_size` and i alone: batch k draws with `fold_in(rng, k)`,
    and the surplus of the last one is thrown away, so that more samples begin with the
    same ones. (`batch_size` enters because samplers may take steps that depend on the
    whole batch.) The number of devices enters by rounding errors only.

    Returns:
      What `task.sample` returns: arrays of rows joined to `num` rows, scalars averaged
      over the batches.
    """
    return join(list(sample_batches(task, variables, rng, num, batch_size, mesh)))


def sample_batches(
    task: SamplingTask,
    variables: Variables,
    rng: Key[Array, ""],
    num: int,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of `draw_samples` one by one, the last cut to what is wanted."""
    for index, start in enumerate(range(0, num, batch_size)):
        key = jax.random.fold_in(rng, index)
        drawn = jax.device_get(_sample(task, variables, key, batch_size, mesh))
        rows = min(batch_size, num - start)
        yield {name: part[:rows] if part.ndim else part for name, part in drawn.items()}


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches as one: their rows in order, the means of their scalars."""
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    return {
        name: np.concatenate(column) if column[0].ndim else np.asarray(np.mean(column))
        for name, column in columns.items()
    }


def scalars(drawn: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What a draw says about itself, such as `nfe`, without its rows."""
    return {name: float(value) for name, value in drawn.items() if value.ndim == 0}


@partial(jax.jit, static_argnums=(0, 3, 4))
def _sample(
    task: SamplingTask, variables: Variables, rng: jax.Array, num: int, mesh: Mesh
) -> dict[str, Any]:
    def split_rows(x: jax.Array) -> jax.Array:
        # Propagates backwards through the whole draw; without it each device makes all.
        if x.ndim:
            x = jax.lax.with_sharding_constraint(x, batch_sharding(mesh))
        return jax.lax.with_sharding_constraint(x, replicated(mesh))

    return jax.tree.map(split_rows, task.sample(variables, rng, num))


def full_range(
    images: UInt8[np.ndarray, "*shape"], levels: int
) -> UInt8[np.ndarray, "*shape"]:
    """Levels 0 .. levels - 1 spread over 0 .. 255."""
    return np.round(images * (255 / (levels - 1))).astype(np.uint8)


def save_grid(
    images: UInt8[np.ndarray, "num height width channels"],
    path: Path,
    columns: int | None = None,
    scale: int | None = None,
) -> None:
    """Writes images of 1 or 3 channels as one PNG, row by row, separated by lines.

    Args:
      images: levels 0 to 255.
      path: of the file; its folder exists.
      columns: images in a row; by default as many as there are rows.
      scale: each pixel becomes a square of this side; by default small images grow
        until their longer side has at least 64.
    """
    num, height, width, channels = images.shape
    scale = scale or math.ceil(64 / max(height, width))
    columns = columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    line = 2
    tile_height, tile_width = height * scale + line, width * scale + line
    canvas = np.full(
        (rows * tile_height + line, columns * tile_width + line, channels), 96, np.uint8
    )
    for index, image in enumerate(images.repeat(scale, axis=1).repeat(scale, axis=2)):
        top = line + index // columns * tile_height
        left = line + index % columns * tile_width
        canvas[top : top + height * scale, left : left + width * scale] = image
    Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas).save(path)
