"""Images drawn to agree with a part of real ones, beside these."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Key, UInt8

from research.diffusion.guidance import Measurement
from research.diffusion.pixels import Pixels
from research.evals.base import Context
from research.evals.samples import full_range, save_grid
from research.tasks.base import Variables


@runtime_checkable
class RestoringTask(Protocol):
    """A task that draws images given a measurement of others."""

    @property
    def pixels(self) -> Pixels: ...

    def restore(
        self,
        variables: Variables,
        images: UInt8[Array, "batch height width channels"],
        rng: Key[Array, ""],
        measure: Callable[[Array], Measurement],
    ) -> dict[str, Array]:
        """`image` like the given ones, `nfe`, and `finite`."""
        ...


@dataclass(frozen=True)
class Restoration:
    """Draws `num_draws` restorations of the first `num` images of a split.

    The picture `<step>.png` has a row for each image: the image, then the draws.

    Reports `rmse`, the root mean square difference of a draw from its image over all
    pixels, which lie in [0, 1]; `other_rmse` beside it is that of a draw from the next
    image, what a restoration that ignores its measurement would have.

    Attributes:
      measure: images in the data range to what is kept of them, such as
        `research.diffusion.guidance.left_half`.
    """

    measure: Callable[[Array], Measurement]
    num: int = 8
    num_draws: int = 7
    split: str = "test"
    every: int = 0

    def __call__(
        self, task: RestoringTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        images = next(context.host_batches(self.split, self.num))["image"]
        repeated = images.repeat(self.num_draws, axis=0)
        rng = jax.random.key(context.seed)
        drawn = jax.device_get(_restore(task, variables, repeated, rng, self.measure))
        draws = drawn["image"].reshape(len(images), self.num_draws, *images.shape[1:])
        if jax.process_index() == 0:
            context.folder.mkdir(parents=True, exist_ok=True)
            rows = np.concatenate([images[:, None], draws], axis=1)
            save_grid(
                full_range(rows.reshape(-1, *images.shape[1:]), task.pixels.levels),
                context.folder / f"{context.step:08d}.png",
                columns=1 + self.num_draws,
            )
        scale = task.pixels.levels - 1

        def rmse(others: np.ndarray) -> float:
            gaps = (draws.astype(float) - others[:, None]) / scale
            return float(np.sqrt(np.mean(gaps**2)))

        return {
            "rmse": rmse(images),
            "other_rmse": rmse(np.roll(images, -1, axis=0)),
            "finite": float(drawn["finite"]),
            "nfe": float(drawn["nfe"]),
        }


@partial(jax.jit, static_argnums=(0, 4))
def _restore(
    task: RestoringTask,
    variables: Variables,
    images: jax.Array,
    rng: jax.Array,
    measure: Callable[[Array], Measurement],
) -> Any:
    return task.restore(variables, images, rng, measure)
