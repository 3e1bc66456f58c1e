"""A learnt score beside the true one, in a number and in a picture."""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.diffusion.densities import Density
from research.evals.base import Context
from research.losses import explicit_score_matching
from research.tasks.base import Variables


@runtime_checkable
class VectorScoreTask(Protocol):
    """A task that learns the score of a density of vectors."""

    def score(
        self, variables: Variables, x: Float[Array, "batch dim"]
    ) -> Float[Array, "batch dim"]: ...


@dataclass(frozen=True)
class FisherDivergence:
    """1/2 E |learnt - true score|^2 over a split's `x`, as `fisher_divergence`.

    `score_energy` beside it is 1/2 E |true score|^2, which a field of zeros would have.
    """

    density: Density
    split: str = "test"
    every: int = 0

    def __call__(
        self, task: VectorScoreTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        learnt, true = [], []
        for batch in context.host_batches(self.split, 1024):
            x = jnp.asarray(batch["x"])
            target = self.density.score(x)
            field = _score(task, variables, x)
            learnt.append(explicit_score_matching(field, target))
            true.append(explicit_score_matching(target, jnp.zeros_like(target)))
        return {
            "fisher_divergence": float(np.concatenate(learnt).mean()),
            "score_energy": float(np.concatenate(true).mean()),
        }


@dataclass(frozen=True)
class ScoreField:
    """Draws the learnt and the true field of a plane over the density: `<step>.png`."""

    density: Density
    low: float = -8.0
    high: float = 8.0
    num_arrows: int = 20
    every: int = 0

    def __call__(
        self, task: VectorScoreTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        if jax.process_index() == 0:
            context.folder.mkdir(parents=True, exist_ok=True)
            self._draw(
                partial(_score, task, variables),
                context.folder / f"{context.step:08d}.png",
            )
        return {}

    def _draw(self, learnt, path):
        # Not pyplot, whose figures are global and whose backend may want a screen.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 5), layout="constrained")
        FigureCanvasAgg(figure)
        fine, coarse = self._plane(200), self._plane(self.num_arrows)
        log_density = np.asarray(self.density.log_density(fine)).reshape(200, 200)
        fields = {"learnt score": learnt, "true score": self.density.score}
        for index, (title, field) in enumerate(fields.items()):
            axes = figure.add_subplot(1, 2, index + 1, title=title, aspect="equal")
            axes.imshow(
                np.exp(log_density),
                extent=(self.low, self.high, self.low, self.high),
                origin="lower",
                cmap="Oranges",
            )
            axes.quiver(*np.asarray(coarse).T, *np.asarray(field(coarse)).T, width=2e-3)
        figure.savefig(path, dpi=80)

    def _plane(self, num: int) -> Float[Array, "points 2"]:
        line = jnp.linspace(self.low, self.high, num)
        return jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)


@partial(jax.jit, static_argnums=0)
def _score(task: VectorScoreTask, variables: Variables, x: jax.Array) -> jax.Array:
    return task.score(variables, x)
